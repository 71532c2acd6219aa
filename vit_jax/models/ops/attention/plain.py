"""Attention in operations of JAX, for any platform and mask."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Instead of -inf: a query without any key then averages the values, and is not NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """The definition, in float32; arguments as those of `dot_product.attention`."""
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    scores = jnp.einsum("bnhk,bmhk->bhnm", q, k) / q.shape[-1] ** 0.5
    scores = _masked(scores, causal, mask, bias)
    return jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(scores), v).astype(query.dtype)


def xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    mask: jax.Array | None,
    bias: jax.Array | None,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> jax.Array:
    """JAX's own; arguments as those of `dot_product.attention`."""
    if mask is not None and bias is not None:
        mask, bias = same_period(mask, bias)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, bias=bias, mask=mask, is_causal=causal, implementation=implementation
        )

    # As many examples at a time as have their own masks and biases.
    examples = max((len(x) for x in (mask, bias) if x is not None), default=1)
    if examples in (1, len(query)):
        return attend(query, key, value)
    repeats = [x.reshape(-1, examples, *x.shape[1:]) for x in (query, key, value)]
    return jax.vmap(attend)(*repeats).reshape(query.shape)


def einsum(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """Scores in the compute type, see `softmax`; arguments as of `dot_product.attention`."""
    scores = jnp.einsum("bnhk,bmhk->bhnm", query * query.shape[-1] ** -0.5, key)
    return jnp.einsum("bhnm,bmhk->bnhk", softmax(_masked(scores, causal, mask, bias)), value)


def softmax(scores: Float[Array, "... keys"]) -> Float[Array, "... keys"]:
    """Softmax over the last axis with float32 sums, stored in the dtype of the scores.

    `jax.nn.dot_product_attention` has a TPU write float32 scores to memory. Here scores stay in the
    compute type, with the largest subtracted, which rounds them no more than the matmul did.

    Args:
        scores: (..., M).
    """
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    powers = jnp.exp((scores - largest).astype(jnp.float32))
    return (powers / jnp.sum(powers, axis=-1, keepdims=True)).astype(scores.dtype)


def same_period(mask: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Repeats the shorter of a mask and a bias, unless it is one for all examples.

    Args:
        mask: (P, H or 1, N or 1, M).
        bias: (P', H or 1, N or 1, M); P divides P' or the other way round.
    """
    if 1 in (len(mask), len(bias)):
        return mask, bias
    examples = max(len(mask), len(bias))
    return jnp.tile(mask, (examples // len(mask), 1, 1, 1)), jnp.tile(
        bias, (examples // len(bias), 1, 1, 1)
    )


def _masked(
    scores: jax.Array, causal: bool, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """Adds a bias and masks, with examples repeated as the scores have them."""
    if bias is not None:
        scores = scores + _tiled(bias, scores).astype(scores.dtype)
    lowest = jnp.asarray(0.7 * jnp.finfo(scores.dtype).min, scores.dtype)
    if mask is not None:
        scores = jnp.where(_tiled(mask, scores), scores, lowest)
    if causal:
        scores = jnp.where(jnp.tri(scores.shape[-2], scores.shape[-1], dtype=bool), scores, lowest)
    return scores


def _tiled(x: jax.Array, scores: jax.Array) -> jax.Array:
    return x if len(x) == 1 else jnp.tile(x, (len(scores) // len(x), 1, 1, 1))
