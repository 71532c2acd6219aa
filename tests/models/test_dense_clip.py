"""Embeddings of patches by the value projection (MaskCLIP), against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models.clip.dense import check_dense, embed_patches
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.vit.model import ViTConfig

STACK = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
VIT = {**STACK, "image_size": 8, "patch_size": 4, "activation": "quick_gelu"}
TEXT = TextConfig(**{**STACK, "depth": 1}, vocab_size=20, context_length=5)
CONFIGS = {
    "class token": CLIPConfig(
        image=ViTConfig(**VIT, pre_norm=True, layer_scale=0.5), text=TEXT, embed_dim=12
    ),
    "mean": CLIPConfig(
        image=ViTConfig(**VIT, class_token=False, pool="mean"), text=TEXT, embed_dim=12
    ),
    "attention pooling": CLIPConfig(
        image=ViTConfig(**VIT, class_token=False, pool="map"),
        text=TEXT,
        embed_dim=16,
        image_projection=False,
    ),
}


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def mlp(x, params):
    x = x @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    x = x / (1 + np.exp(-1.702 * x))
    return x @ params["fc2"]["kernel"] + params["fc2"]["bias"]


def values(x, projection, out):
    """Value and output projections of single tokens, without heads: their outputs are joined."""
    width = x.shape[-1]
    kernel, bias = projection["kernel"][:, -1], projection["bias"][-1]
    x = x @ kernel.reshape(width, width) + bias.reshape(width)
    return x @ out["kernel"].reshape(width, width) + out["bias"]


def reference(config, params, before_last, last):
    """The embeddings of patches, from the outputs of the last two blocks."""
    tower = params["image"]
    if config.image.pool == "map":
        head, x = tower["map_head"], layer_norm(last, tower["norm"])
        x = values(x, head["key_value"], head["out"])
        x = x + mlp(layer_norm(x, head["norm"]), head["mlp"])
    else:
        block = jax.tree.map(lambda leaf: leaf[-1], tower["transformer"]["blocks"])
        x = before_last[:, config.image.num_prefix :]
        scale1, scale2 = (block.get(f"scale{i}", {"gamma": 1.0})["gamma"] for i in (1, 2))
        attention = block["attention"]
        x = x + scale1 * values(layer_norm(x, block["norm1"]), attention["qkv"], attention["out"])
        x = x + scale2 * mlp(layer_norm(x, block["norm2"]), block["mlp"])
        x = layer_norm(x, tower["norm"]) @ params["image_projection"]["kernel"]
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_of_patches(name):
    model, rng = ModelDef(CONFIGS[name]), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.2, 0.3, x.shape), "f4"), model.shapes()
    )
    images = jnp.asarray(rng.normal(size=(2, 8, 12, 3)), jnp.float32)

    @jax.jit
    def compute(params):
        module = model.bind(params)
        return embed_patches(module, images), module.features(images, (-2, -1))

    found, blocks = compute(params)
    wide, blocks = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, blocks))
    expected = reference(CONFIGS[name], wide, *blocks)
    assert found.shape == (2, 2, 3, CONFIGS[name].embed_dim)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (ViTConfig(), "expected a dual encoder, as clip_vit_b16; found ViTConfig"),
        (CLIPConfig(image=SwinConfig(), text=TEXT), "image tower is a ViT.*found SwinConfig"),
        (model_spec("clip_rn50").architecture, "image tower is a ViT.*found CLIPResNetConfig"),
        (
            CLIPConfig(image=ViTConfig(**{**VIT, "depth": 1}), text=TEXT),
            "at least 2 blocks; found 1",
        ),
    ],
)
def test_models_without_embeddings_of_patches(architecture, message):
    with pytest.raises(UserError, match=message):
        check_dense(architecture)
