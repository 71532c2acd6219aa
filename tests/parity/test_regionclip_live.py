"""RegionCLIP with RN50 against open_clip's image tower and torchvision's RoIAlign."""

import numpy as np
import pytest

pytest.importorskip("open_clip")
pytest.importorskip("torchvision")

import open_clip
import torch
from torchvision.ops import roi_align

from tests.parity.live import compare, random_images
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec

pytestmark = pytest.mark.parity

# Center x, center y, width, height in [0, 1] of 192 x 256 px.
BOXES = np.float32([[[0.5, 0.5, 1, 1], [0.3, 0.4, 0.2, 0.5], [0.8, 0.6, 0.3, 0.1]]])


def test_rn50(tmp_path):
    theirs = open_clip.create_model("RN50-quickgelu")
    tower = theirs.visual

    def forward(images, boxes):
        x = images.permute(0, 3, 1, 2)
        x = tower.layer3(tower.layer2(tower.layer1(tower.stem(x))))
        low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
        corners = torch.cat([low, high], dim=-1) * torch.tensor([256.0, 192, 256, 192])
        regions = roi_align(x, list(corners), (14, 14), 1 / 16, sampling_ratio=0, aligned=True)
        return {"regions": tower.attnpool(tower.layer4(regions))}

    compare(
        theirs,
        forward,
        ModelDef(model_spec("regionclip_rn50").architecture),
        lambda model, images, boxes: {"regions": model.encode_regions(images, boxes)[0]},
        (random_images(1, 192, 256, 3), BOXES),
        "openai_clip",
        tmp_path,
    )
