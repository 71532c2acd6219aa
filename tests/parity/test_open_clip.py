"""open_clip at published sizes (pytest -m parity; needs the extra `parity`)."""

import numpy as np
import pytest

pytest.importorskip("open_clip")

import open_clip
import torch

from tests.fixtures.generators import make_resnet, make_timm
from tests.parity.live import compare, random_images
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec

pytestmark = pytest.mark.parity


def compare_pairs(theirs, config, tokens, format, folder):
    """Embeddings of both towers, normalised and not, and the logits."""

    def forward(images, tokens):
        images = images.permute(0, 3, 1, 2)
        logits, _ = theirs.get_logits(images, tokens)
        return {
            "image": theirs.encode_image(images),
            "text": theirs.encode_text(tokens),
            "logits": logits,
        }

    def ours(module, images, tokens):
        scale, bias = module.logit_parameters()
        z = module.encode_image(images, normalize=True)
        t = module.encode_text(tokens, normalize=True)
        logits = scale * z @ t.T + (0 if bias is None else bias)
        image, text = module.encode_image(images), module.encode_text(tokens)
        return {"image": image, "text": text, "logits": logits}

    inputs = random_images(2, 224, 224, 3), tokens
    compare(theirs, forward, ModelDef(config), ours, inputs, format, folder)


def test_siglip(tmp_path):
    theirs = open_clip.create_model("ViT-B-16-SigLIP")
    with torch.no_grad():
        make_timm.randomise(theirs)
        theirs.logit_scale.fill_(2.5)
        theirs.logit_bias.fill_(-9.5)
    config = model_spec("ViT-B-16-SigLIP").architecture
    tokens = np.random.default_rng(1).integers(32_000, size=(2, 64))
    compare_pairs(theirs, config, tokens, "siglip_open_clip", tmp_path)


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "RN50-quickgelu"])
def test_clip(name, tmp_path):
    theirs = open_clip.create_model(name)
    with torch.no_grad():
        make_timm.randomise(theirs)
        if name.startswith("RN"):
            make_resnet.randomise(theirs.visual, half=False)
        theirs.logit_scale.fill_(2.5)
    tokens = np.random.default_rng(1).integers(1, 49_407, size=(2, 77))
    tokens[0, 5], tokens[0, 6:], tokens[1, -1] = 49_407, 0, 49_407
    compare_pairs(theirs, model_spec(name).architecture, tokens, "openai_clip", tmp_path)
