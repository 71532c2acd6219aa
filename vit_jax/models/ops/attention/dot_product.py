"""Scaled dot-product attention: one function, and the choice of its implementation.

Shapes: batch B, queries N, keys M, heads H of K features.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vit_jax.errors import UserError, lookup
from vit_jax.models import partitioning
from vit_jax.models.ops.attention import plain
from vit_jax.models.ops.attention.long_sequence import long_sequence_attention
from vit_jax.models.ops.attention.plain import Masks
from vit_jax.models.ops.attention.whole_sequence import Options, fits, whole_sequence_attention

# One query per example, as in attention pooling, leaves all lanes of the kernel but one empty.
_FEWEST_QUERIES = 8


def attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    *,
    causal: bool = False,
    mask: Bool[Array, "_examples _heads _queries keys"] | None = None,
    bias: Float[Array, "_biases _bias_heads _bias_queries keys"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "batch queries heads head_dim"]:
    """Computes softmax(query key^T / sqrt(K) + bias) value (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (B, N, H, K).
        key: (B, M, H, K).
        value: (B, M, H, K).
        causal: whether a query attends only to the keys up to its own index.
        mask: True where a query attends to a key, (P, H or 1, N or 1, M). P divides B: example b
            has the mask of b mod P, and 1 is one mask for all. (B, 1, 1, M) masks padded keys. A
            query without any key averages the values.
        bias: added to the scaled scores, (P or 1, H or 1, N or 1, M).
        implementation: key of `ATTENTION`; by default `compute.attention` of the config, or else
            the choice of `choose`.

    Returns:
        (B, N, H, K), dtype of `query`.

    Raises:
        UserError: an unknown implementation, or one that does not support the mask.
    """
    masked = mask is not None or bias is not None
    name = implementation or choose(query.shape, key.shape[1], query.dtype, masked=masked)
    function = lookup(ATTENTION, name, "implementation of attention")
    return function(query, key, value, Masks(causal, mask, bias))


def choose(shape: tuple[int, ...], keys: int, dtype: Any, *, masked: bool) -> str:
    """Chooses an implementation by platform, dtype and shape.

    Args:
        shape: shape of the queries (B, N, H, K).
        keys: number of keys M.
        dtype: dtype of the queries.
        masked: whether there is a mask or a bias, except the causal one.

    Returns:
        Key of `ATTENTION`.
    """
    forced = partitioning.attention_implementation()
    if forced != partitioning.AUTO:
        return forced
    if partitioning.platform() == "cpu":
        return "xla"
    _, queries, heads, head_dim = shape
    if partitioning.platform() == "gpu":
        return "einsum" if queries == keys and not masked else "xla"
    if queries < _FEWEST_QUERIES:
        return "xla"
    heads = max(1, heads // partitioning.shards("heads"))
    if fits(queries, keys, heads, head_dim, jnp.dtype(dtype).itemsize):
        return "pallas"
    return "xla" if masked else "splash"


def _whole_sequence(query: jax.Array, key: jax.Array, value: jax.Array, masks: Masks) -> jax.Array:
    wanted, interpret = masks.bias is not None, partitioning.interpret_kernels()
    options = Options(query.shape[-1], masks.causal, wanted, interpret)
    q, k, v = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
    out = whole_sequence_attention(q, k, v, options, bias=masks.additive())
    return out.reshape(query.shape)


def _long_sequence(query: jax.Array, key: jax.Array, value: jax.Array, masks: Masks) -> jax.Array:
    if masks.mask is not None or masks.bias is not None:
        raise UserError("attention=splash supports no mask or bias, except the causal one")
    interpret = partitioning.interpret_kernels()
    return long_sequence_attention(query, key, value, causal=masks.causal, interpret=interpret)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, masks: Masks) -> jax.Array:
    if partitioning.platform() != "gpu" or query.dtype not in (jnp.bfloat16, jnp.float16):
        raise UserError("attention=cudnn needs a GPU and compute.dtype=bfloat16")
    return plain.xla(query, key, value, masks, implementation="cudnn")


ATTENTION: dict[str, Callable[[jax.Array, jax.Array, jax.Array, Masks], jax.Array]] = {
    "reference": plain.reference,
    "xla": plain.xla,
    "einsum": plain.einsum,
    "pallas": _whole_sequence,
    "splash": _long_sequence,
    "cudnn": _cudnn,
}
