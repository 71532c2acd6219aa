"""open_clip at published sizes (pytest -m parity; needs the extra `parity`)."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("open_clip")

import open_clip
import torch
from open_clip.factory import get_model_config
from open_clip.model import CLIP, CustomTextCLIP

from tests.fixtures.generators import make_resnet, make_timm
from tests.parity.live import check_names, compare, random_images
from vit_jax.models.clip.zoo import ALIASES
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.mlp import ACTIVATIONS
from vit_jax.models.registry import model_spec

pytestmark = pytest.mark.parity

# Our aliases that open_clip has, with towers of its own or with a ViT of timm.
NAMES = sorted(set(ALIASES) & set(open_clip.list_models()))


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes(name):
    """Of all registered names of open_clip, without computing anything, and the activations."""
    config = get_model_config(name)
    custom = config.pop("custom_text", False)
    with torch.device("meta"):
        theirs = (CustomTextCLIP if custom else CLIP)(**config)
    architecture = model_spec(name).architecture
    check_names(theirs, ModelDef(architecture), "siglip_open_clip" if custom else "openai_clip")
    if not name.startswith("RN"):
        trunk = getattr(theirs.visual, "trunk", None)
        mlp = trunk.blocks[0].mlp.act if trunk else theirs.visual.transformer.resblocks[0].mlp[1]
        texts = theirs.text if custom else theirs
        towers = {"image": mlp, "text": texts.transformer.resblocks[0].mlp[1]}
        for tower, activation in towers.items():
            x = torch.linspace(-3, 3, 50)
            expected = activation(x).numpy()
            found = ACTIVATIONS[getattr(architecture, tower).activation](jnp.asarray(x.numpy()))
            np.testing.assert_allclose(found, expected, atol=1e-6)


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


def test_coca(tmp_path):
    theirs = open_clip.create_model("coca_ViT-B-32")
    with torch.no_grad():
        make_timm.randomise(theirs)
        theirs.logit_scale.fill_(2.5)

    def forward(images, tokens):
        found = theirs(images.permute(0, 3, 1, 2), tokens)
        return {
            "image": found["image_features"],
            "text": found["text_features"],
            "caption": found["logits"],
        }

    def ours(module, images, tokens):
        image, text, states = module.encode_pairs(images, tokens)
        return {"image": image, "text": text, "caption": module.decoder.logits(states[:, 1:])}

    tokens = np.random.default_rng(1).integers(1, 49_407, size=(2, 76))
    tokens[0, 5], tokens[0, 6:], tokens[1, -1] = 49_407, 0, 49_407
    inputs = random_images(2, 224, 224, 3), tokens
    model = ModelDef(model_spec("coca_ViT-B-32").architecture)
    compare(theirs, forward, model, ours, inputs, "coca_open_clip", tmp_path)


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
