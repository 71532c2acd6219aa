"""Rotary positions (RoPE): what is rotated, by which angles, and when they are scaled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.rotary import patch_angles, rotate
from vit_jax.models.vit.attention_maps import attention_maps
from vit_jax.models.vit.model import ViTConfig

CONFIG = ViTConfig(
    image_size=(8, 12),
    patch_size=4,
    width=16,
    depth=1,
    num_heads=2,
    mlp_dim=8,
    num_registers=2,
    position_init="rotary",
    rotary_rescale=2.0,
)


@pytest.fixture(scope="module")
def module():
    model, rng = ModelDef(CONFIG), np.random.default_rng(0)
    return model.bind(jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
                                   model.shapes()))  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(1, 8, 12, 3)), jnp.float32)


def test_angles_and_rotation_are_those_of_the_definition():
    """float64: pair i of features turns by the row or the column times 2 pi 100^(-4i/K)."""
    grid, features = (2, 3), 8
    x = np.random.default_rng(0).normal(size=(1, 1 + 6, 1, features))
    expected = x.copy()
    for row in range(2):
        for column in range(3):
            token = 1 + 3 * row + column
            centres = (2 * row + 1) / 2 - 1, (2 * column + 1) / 3 - 1
            for pair in range(features // 2):
                axis, i = divmod(pair, features // 4)
                turn = np.exp(2j * np.pi * centres[axis] * 100.0 ** (-4 * i / features))
                z = turn * (x[0, token, 0, pair] + 1j * x[0, token, 0, pair + features // 2])
                expected[0, token, 0, [pair, pair + features // 2]] = z.real, z.imag
    found = rotate(jnp.asarray(x, jnp.float32), patch_angles(grid, features, 1))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_selected_patches_keep_their_rotation(module, images):
    """Attention has no order of its own: only the rotation tells patches apart."""
    order = jnp.asarray([[4, 1, 5, 0, 2, 3]])
    in_order, found = (module.encode_patches(images, x) for x in (jnp.arange(6)[None], order))
    np.testing.assert_allclose(found[:, :3], in_order[:, :3], atol=2e-6)
    np.testing.assert_allclose(found[:, 3:], in_order[:, 3 + order[0]], atol=2e-6)


def test_coordinates_are_scaled_in_training_only(module, images):
    plain = module._angles(images, None)
    factors = []
    for seed in range(8):
        scaled = module._angles(images, jax.random.key(seed))
        factors.append(float(jnp.max(scaled) / jnp.max(plain)))
        np.testing.assert_allclose(scaled, factors[-1] * plain, rtol=1e-5)
    assert 0.5 <= min(factors) < 0.8
    assert 1.25 < max(factors) <= 2


def test_attention_maps_are_rotated(module, images):
    maps = attention_maps(module, images)
    assert maps.shape == (1, 1, 2, 9, 9)
    plain = module.transformer.attention_maps(module._tokens(images)[0])
    assert float(jnp.max(jnp.abs(maps - plain))) > 0.01
    np.testing.assert_allclose(maps[..., :3, :3] / maps[..., :3, :1],
                               plain[..., :3, :3] / plain[..., :3, :1], rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 12}, "heads of a multiple of 4 features; found width=12, num_heads=2"),
        ({"rotary_rescale": 0.5}, "rotary_rescale=0.5: expected 1 or more"),
        ({"qkv_bias": "qk"}, "unknown qkv_bias 'qk'"),
        ({"norm": "rsm"}, "did you mean 'rms'"),
    ],
)
def test_impossible_options(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
