"""The original MAE at its published size (pytest -m parity; needs the extra `parity`)."""

import pytest

pytest.importorskip("timm")

import torch

from tests.fixtures.generators.make_mae import MaskedAutoencoder, randomise_all_but_positions
from tests.parity.live import compare, random_images
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec

pytestmark = pytest.mark.parity


def test_mae(tmp_path):
    """Pixels and mask for fixed noise, and the pooled features of the whole image."""
    theirs = MaskedAutoencoder()
    with torch.no_grad():
        randomise_all_but_positions(theirs)

    def forward(images, noise):
        x = images.permute(0, 3, 1, 2)
        _, pixels, mask = theirs(x, noise)
        return {"pixels": pixels, "mask": mask, "pooled": theirs.encode(x)[:, 0]}

    def ours(module, images, noise):
        pixels, mask = module.reconstruct(images, noise, 0.75)
        return {"pixels": pixels, "mask": mask, "pooled": module.encode_image(images)}

    inputs = random_images(1, 224, 224, 3), random_images(1, 196)
    model = ModelDef(model_spec("mae_vit_b16").architecture)
    compare(theirs, forward, model, ours, inputs, "mae", tmp_path)
