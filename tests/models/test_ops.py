"""Kernels: every implementation against float64 NumPy, and the choice between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax as scipy_softmax

from vit_jax.errors import UserError
from vit_jax.models import partitioning
from vit_jax.models.ops.attention import (
    ATTENTION,
    SELF_ATTENTION,
    attention,
    self_attention,
    softmax,
)
from vit_jax.models.ops.mlp import MLP, mlp

BATCH, LENGTH, HEADS, HEAD_DIM = 2, 5, 3, 4
WIDTH = HEADS * HEAD_DIM


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def expected_attention(q, k, v, causal, bias=None):
    """One head of one example at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1])
            if bias is not None:
                scores = scores + np.asarray(bias, np.float64)[b % len(bias), h]
            if causal:
                scores = np.where(np.tri(*scores.shape), scores, -np.inf)
            out[b, :, h] = scipy_softmax(scores, axis=-1) @ v[b, :, h]
    return out


@pytest.mark.parametrize("implementation", ATTENTION)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias_batch", [None, 1, BATCH])
def test_attention(implementation, causal, bias_batch):
    q, k, v = (random(BATCH, LENGTH, HEADS, HEAD_DIM, seed=i) for i in range(3))
    bias = None if bias_batch is None else random(bias_batch, HEADS, LENGTH, LENGTH, seed=3)
    found = attention(q, k, v, causal=causal, bias=bias, implementation=implementation)
    expected = expected_attention(q, k, v, causal, bias)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ATTENTION)
def test_attention_of_one_query(implementation):
    q, k, v = random(2, 1, 3, 4), random(2, 7, 3, 4, seed=1), random(2, 7, 3, 4, seed=2)
    found = attention(q, k, v, implementation=implementation)
    np.testing.assert_allclose(found, expected_attention(q, k, v, False), rtol=1e-5, atol=1e-5)


def projections():
    qkv = random(WIDTH, 3, HEADS, HEAD_DIM, seed=4) / 3, random(3, HEADS, HEAD_DIM, seed=5)
    out = random(HEADS, HEAD_DIM, WIDTH, seed=6) / 3, random(WIDTH, seed=7)
    return qkv, out


def expected_self_attention(x, qkv, out, causal):
    x, *weights = (np.asarray(a, np.float64) for a in (x, *qkv, *out))
    flat = x.reshape(-1, WIDTH) @ weights[0].reshape(WIDTH, -1) + weights[1].reshape(-1)
    q, k, v = np.moveaxis(flat.reshape(BATCH, LENGTH, 3, HEADS, HEAD_DIM), 2, 0)
    attended = expected_attention(np.tanh(q), np.sin(k), v, causal)
    return attended.reshape(BATCH, LENGTH, WIDTH) @ weights[2].reshape(WIDTH, -1) + weights[3]


@pytest.mark.parametrize("implementation", SELF_ATTENTION)
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention(implementation, causal):
    x, (qkv, out) = random(BATCH, LENGTH, WIDTH), projections()
    found = self_attention(
        x, qkv, out, causal=causal, normalize=(jnp.tanh, jnp.sin), implementation=implementation
    )
    expected = expected_self_attention(x, qkv, out, causal)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", MLP)
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (2, 3, 2, 4)])
def test_mlp(implementation, shape):
    x = random(*shape)
    fc1, fc2 = (random(4, 7, seed=1), random(7, seed=2)), (random(7, 4, seed=3), random(4, seed=4))
    found = mlp(x, fc1, fc2, jnp.tanh, implementation=implementation)
    x, k1, b1, k2, b2 = (np.asarray(a, np.float64) for a in (x, *fc1, *fc2))
    np.testing.assert_allclose(found, np.tanh(x @ k1 + b1) @ k2 + b2, rtol=1e-5, atol=1e-5)


def test_softmax_in_bfloat16_is_as_exact_as_its_scores():
    """Rounding a probability is an error of 2^-9; a score of 8 is itself off by 2^-6."""
    scores = jnp.asarray(np.random.default_rng(0).normal(0, 3, (64, 196)), jnp.bfloat16)
    expected = scipy_softmax(np.asarray(scores, np.float64), axis=-1)
    found = np.asarray(softmax(scores), np.float64)
    np.testing.assert_allclose(found, expected, rtol=2**-5, atol=2**-9)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=2**-9)


@pytest.mark.parametrize(("platform", "fused"), [("cpu", True), ("tpu", False), ("gpu", False)])
def test_platform_chooses_the_implementation(platform, fused):
    """On a CPU the projection into queries, keys and values is one matmul of (tokens, D)."""
    qkv, out = projections()

    def forward(x):
        with partitioning.use(platform=platform):
            return self_attention(x, qkv, out)

    program = str(jax.make_jaxpr(forward)(random(BATCH, LENGTH, WIDTH)))
    assert (f"f32[{BATCH * LENGTH},3,{HEADS},{HEAD_DIM}]" in program) is fused


def test_unknown_implementation():
    q = random(1, 2, 1, 4)
    with pytest.raises(UserError, match="implementation of attention 'xal'; did you mean 'xla'"):
        attention(q, q, q, implementation="xal")
