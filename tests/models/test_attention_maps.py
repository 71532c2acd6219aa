"""Attention maps, their rollout and the relevance of patches, against NumPy and single blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.models.layers.stacking import layer_of
from vit_jax.models.vit.attention_maps import attention_maps, attention_rollout, patch_relevance
from vit_jax.models.vit.model import ViTConfig


@pytest.fixture(scope="module")
def vit():
    """A ViT of two blocks with five tokens, and two images."""
    config = ViTConfig(image_size=8, patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=16)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    return config.make(rngs=nnx.Rngs(0)), images


def last_block(model):
    graphdef, state = nnx.split(model.transformer.blocks)
    return nnx.merge(graphdef, layer_of(state, -1))


def test_maps_are_those_of_numpy(vit):
    model, images = vit
    maps = np.asarray(nnx.jit(attention_maps)(model, images))
    assert maps.shape == (2, 2, 2, 5, 5)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-6)
    block = last_block(model)
    x = np.asarray(model.features(images, [0])[0], np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    kernel = np.asarray(block.attention.qkv.kernel[...], np.float64)
    queries, keys, _ = np.moveaxis(np.einsum("bnd,dphk->bnphk", x, kernel), 2, 0)
    weights = np.exp(np.einsum("bqhk,bnhk->bhqn", queries, keys) / 2)
    expected = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(maps[-1], expected, atol=1e-5)


def test_rollout():
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.ones(3), size=(2, 1, 4, 3))
    first, second = (maps.mean(2)[i, 0] / 2 + np.eye(3) / 2 for i in range(2))
    found = np.asarray(attention_rollout(jnp.asarray(maps)))[0]
    np.testing.assert_allclose(found, second @ first, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_relevance_is_gradient_times_input_of_the_last_block(vit):
    model, images = vit
    direction = jax.random.normal(jax.random.key(2), (8,))
    relevance = nnx.jit(lambda m, x: patch_relevance(m, x, lambda pooled: pooled @ direction))
    found = relevance(model, images)
    block, (inputs,) = last_block(model), model.features(images, [0])

    def score(x):
        return jnp.sum(model.norm(block(x)[:, 0]) @ direction)

    products = (jax.jit(jax.grad(score))(inputs) * inputs).sum(-1)[:, 1:]
    np.testing.assert_allclose(found, np.maximum(products, 0), atol=1e-6)
    assert 0 < (np.asarray(found) > 0).sum() < found.size
