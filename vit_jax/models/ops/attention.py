"""Attention: the scaled dot product, and self-attention with its projections.

Shapes: batch B, tokens N, width D, heads H of K = D / H features.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.errors import lookup
from vit_jax.models.ops.linear import Weights, linear
from vit_jax.models.partitioning import constrain, laid_out, platform

Heads = Float[Array, "batch length heads head_dim"]
Normalize = Callable[[jax.Array], jax.Array]


def attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    *,
    causal: bool = False,
    bias: Float[Array, "#batch heads queries keys"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "batch queries heads head_dim"]:
    """Computes softmax(query key^T / sqrt(K) + bias) value (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (B, N, H, K).
        key: (B, M, H, K).
        value: (B, M, H, K).
        causal: whether a query attends only to the keys up to its own index.
        bias: (B or 1, H, N, M), added to the scaled scores.
        implementation: key of `ATTENTION`; by default "einsum" for self-attention without a bias on
            accelerators, "xla" otherwise.

    Returns:
        (B, N, H, K), dtype of `query`.
    """
    if implementation is None:
        plain = bias is None and query.shape == key.shape and platform() != "cpu"
        implementation = "einsum" if plain else "xla"
    function = lookup(ATTENTION, implementation, "implementation of attention")
    return function(query, key, value, causal, bias)


def self_attention(
    x: Float[Array, "batch length width"],
    qkv: Weights,
    out: Weights,
    *,
    causal: bool = False,
    normalize: tuple[Normalize, Normalize] | None = None,
    implementation: str | None = None,
) -> Float[Array, "batch length width"]:
    """Projects tokens to queries, keys and values, attends, and projects back.

    Args:
        x: tokens (B, N, D).
        qkv: kernel (D, 3, H, K) and bias (3, H, K) of the fused projection.
        out: kernel (H, K, D) and bias (D,) of the output projection.
        causal: whether a token attends only to those before it and to itself.
        normalize: functions of the queries and of the keys (QK-norm); None for none.
        implementation: key of `SELF_ATTENTION`; by default "flat" on CPUs, "split" elsewhere.

    Returns:
        (B, N, D), dtype of `x`.
    """
    implementation = implementation or ("flat" if platform() == "cpu" else "split")
    function = lookup(SELF_ATTENTION, implementation, "implementation of self-attention")
    return function(x, qkv, out, causal, normalize)


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


def _earlier(scores: jax.Array) -> jax.Array:
    """Mask (N, M) of the keys up to each query's own index."""
    queries, keys = scores.shape[-2:]
    return jnp.tri(queries, keys, dtype=bool)


def _reference(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, bias: jax.Array | None
) -> jax.Array:
    """The definition, in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    scores = jnp.einsum("bnhk,bmhk->bhnm", q, k) / q.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = jnp.where(_earlier(scores), scores, -jnp.inf)
    return jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(scores), v).astype(query.dtype)


def _xla(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, bias: jax.Array | None
) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, bias=bias, is_causal=causal)


def _einsum(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, bias: jax.Array | None
) -> jax.Array:
    """Scores in the compute type, see `softmax`."""
    scores = jnp.einsum("bnhk,bmhk->bhnm", query * query.shape[-1] ** -0.5, key)
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    if causal:
        scores = jnp.where(_earlier(scores), scores, -jnp.inf)
    return jnp.einsum("bhnm,bmhk->bnhk", softmax(scores), value)


ATTENTION = {"reference": _reference, "xla": _xla, "einsum": _einsum}


def _flat(
    x: jax.Array,
    qkv: Weights,
    out: Weights,
    causal: bool,
    normalize: tuple[Normalize, Normalize] | None,
) -> jax.Array:
    """Fused projection of (B N, D). XLA:CPU contracts (B, N, D) slowly, see `ops.mlp`."""
    batch, length, width = x.shape
    heads = linear(x.reshape(-1, width), qkv)
    heads = heads.reshape(batch, length, *heads.shape[1:])
    heads = constrain(heads, "batch", "length", None, "heads", None)
    q, k, v = _normalized(jnp.moveaxis(heads, 2, 0), normalize)
    x = attention(q, k, v, causal=causal)
    return linear(x.reshape(batch * length, *x.shape[2:]), out, 2).reshape(batch, length, width)


def _split(
    x: jax.Array,
    qkv: Weights,
    out: Weights,
    causal: bool,
    normalize: tuple[Normalize, Normalize] | None,
) -> jax.Array:
    """Three projections. The gradient of a fused result would be stacked, that is copied."""
    kernel, bias = qkv

    def project(i: int) -> jax.Array:
        heads = jnp.einsum("bnd,dhk->bnhk", x, kernel[:, i]) + bias[i]
        # Tokens are the minor dimension in the gradients' matmuls; this layout saves a copy.
        return laid_out(constrain(heads, "batch", "length", "heads", None), (0, 2, 3, 1))

    q, k, v = _normalized([project(i) for i in range(3)], normalize)
    x = attention(q, k, v, causal=causal)
    kernel, bias = out
    return jnp.einsum("bnhk,hkd->bnd", x, kernel) + bias


def _split_reference(
    x: jax.Array,
    qkv: Weights,
    out: Weights,
    causal: bool,
    normalize: tuple[Normalize, Normalize] | None,
) -> jax.Array:
    """The definition, without constraints."""
    heads = jnp.moveaxis(jnp.einsum("bnd,dchk->bnchk", x, qkv[0]) + qkv[1], 2, 0)
    q, k, v = _normalized(heads, normalize)
    x = attention(q, k, v, causal=causal, implementation="reference")
    return jnp.einsum("bnhk,hkd->bnd", x, out[0]) + out[1]


def _normalized(
    qkv: jax.Array | list[jax.Array], normalize: tuple[Normalize, Normalize] | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v = qkv
    return (q, k, v) if normalize is None else (normalize[0](q), normalize[1](k), v)


SELF_ATTENTION = {"reference": _split_reference, "flat": _flat, "split": _split}
