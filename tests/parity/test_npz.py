"""timm and open_clip read exported `.npz` files at published sizes (pytest -m parity)."""

import dataclasses

import pytest

pytest.importorskip("timm")
pytest.importorskip("open_clip")

import jax
import numpy as np
import open_clip
import timm
import torch
from flax import traverse_util
from open_clip.convert import load_big_vision_weights

from tests.parity.live import check, random_images
from tests.weights.activations import pair
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.registry import model_spec
from vit_jax.pretrained.weight_files import load_weights, save_weights

pytestmark = pytest.mark.parity

AFTER = {"prefix_positions": False}
MAP = {"class_token": False, "pool": "map"}
# Format, changes of the ViT-B/16 here, changes of the one in timm.
CASES = {
    "vit_jax": ("vit_jax_npz", {}, {}),
    "tok": ("big_vision", AFTER, {"no_embed_class": True}),
    "map": ("big_vision", MAP, {"class_token": False, "global_pool": "map"}),
    "scanned": ("big_vision_scanned", MAP, {"class_token": False, "global_pool": "map"}),
}


def random_params(model: ModelDef) -> Params:
    """Returns fresh parameters with noise, so that none is zero or one."""
    generator = np.random.default_rng(0)
    leaves = traverse_util.flatten_dict(jax.jit(model.init)(jax.random.key(0)), sep="/")
    noisy = {
        path: leaf + generator.normal(0, 0.01 if "kernel" in path else 0.2, leaf.shape)
        for path, leaf in leaves.items()
    }
    return traverse_util.unflatten_dict(
        {path: leaf.astype(np.float32) for path, leaf in noisy.items()}, sep="/"
    )


@pytest.mark.parametrize("name", CASES)
def test_vit_b16(name, tmp_path):
    kind, ours, theirs = CASES[name]
    architecture = dataclasses.replace(model_spec("vit_b16").architecture, **ours)
    model = ModelDef(architecture)
    params = random_params(model)
    save_weights(params, model, tmp_path / "out.npz", kind)
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "out.npz", model), params)

    images = random_images(2, 224, 224, 3)
    other = timm.create_model("vit_base_patch16_224", **theirs).eval()
    other.load_pretrained(str(tmp_path / "out.npz"))
    with torch.no_grad():
        features = other.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2))
        expected = {
            "pooled": other.forward_head(features, pre_logits=True).numpy(),
            "logits": other.forward_head(features).numpy(),
        }
    apply = jax.jit(
        lambda params, x: {
            "pooled": model.bind(params).encode_image(x),
            "logits": model.bind(params)(x),
        }
    )
    check(name, apply(params, images), expected)


def test_siglip_b16(tmp_path):
    model = ModelDef(model_spec("ViT-B-16-SigLIP").architecture)
    params = random_params(model)
    save_weights(params, model, tmp_path / "out.npz", "big_vision")
    images = random_images(2, 224, 224, 3)
    tokens = np.random.default_rng(1).integers(32_000, size=(2, 64))
    found = jax.jit(lambda params, x, y: pair(model.bind(params), x, y))(params, images, tokens)

    other = open_clip.create_model("ViT-B-16-SigLIP").eval()
    load_big_vision_weights(other, str(tmp_path / "out.npz"))
    with torch.no_grad():
        pixels, ids = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(tokens)
        expected = {
            "image_normalized": other.encode_image(pixels, normalize=True),
            "text_normalized": other.encode_text(ids, normalize=True),
            "logits": other.get_logits(pixels, ids)[0],
        }
    check(
        "siglip", {key: found[key] for key in expected}, {k: v.numpy() for k, v in expected.items()}
    )
