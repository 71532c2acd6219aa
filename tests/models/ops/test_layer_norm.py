"""LayerNorm of a residual stream against float64 NumPy, with all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import partitioning
from vit_jax.models.ops.layer_norm import normalize_branch
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.sharding import ActivationPlacement

EPSILON = 1e-6


def reference(x, scale, bias, dy, dx):
    """Normalised tokens, and gradients of tokens, scale and bias."""
    x, scale, bias, dy, dx = (np.asarray(a, np.float64) for a in (x, scale, bias, dy, dx))
    inverse = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + EPSILON)
    normalized = (x - x.mean(axis=-1, keepdims=True)) * inverse
    scaled = dy * scale
    along = (scaled * normalized).mean(axis=-1, keepdims=True)
    gradient = inverse * (scaled - scaled.mean(axis=-1, keepdims=True) - normalized * along)
    return (
        normalized * scale + bias,
        gradient + dx,
        (dy * normalized).sum(axis=(0, 1)),
        dy.sum(axis=(0, 1)),
    )


def compute(x, scale, bias, dy, dx):
    def function(x, scale, bias):
        return normalize_branch(x, scale, bias, EPSILON, interpret=True)

    def both(x, scale, bias):
        (y, same), vjp = jax.vjp(function, x, scale, bias)
        return y, same, vjp((dy, dx))

    y, same, gradients = jax.jit(both)(x, scale, bias)
    np.testing.assert_array_equal(same, x)
    return y, *gradients


def arguments(shape, dtype=jnp.float32):
    generator = np.random.default_rng(0)
    tokens = [jnp.asarray(generator.normal(3.0, 1.0, shape), dtype) for _ in range(3)]
    scale, bias = (jnp.asarray(generator.normal(size=shape[-1]), jnp.float32) for _ in range(2))
    return tokens[0], scale, bias, *tokens[1:]


@pytest.mark.parametrize("shape", [(4, 7, 24), (3, 1, 128), (8, 197, 16), (2, 37, 12 * 2048)])
def test_results_and_gradients(shape):
    args = arguments(shape)
    for found, expected in zip(compute(*args), reference(*args), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_statistics_are_float32_in_bfloat16():
    """Results are rounded once: half of 2^-7 of the value."""
    args = arguments((4, 50, 32), jnp.bfloat16)
    found, expected = compute(*args)[0], reference(*args)[0]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("batch", [8, 6])  # devices divide the batch, or not
def test_several_devices(batch):
    args = arguments((batch, 5, 16))
    mesh = make_mesh(data=2, fsdp=2, tensor=2, devices=jax.devices()[:8])
    with partitioning.use(ActivationPlacement(mesh)):
        results = compute(*args)
    for found, expected in zip(results, reference(*args), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
