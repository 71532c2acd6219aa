"""Self-attention with its projections.

Shapes: batch B, tokens N, width D, heads H of K = D / H features.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.errors import lookup
from vit_jax.models.ops.attention.dot_product import attention, choose
from vit_jax.models.ops.attention.whole_sequence import Options, whole_sequence_attention
from vit_jax.models.ops.linear import Weights, linear
from vit_jax.models.partitioning import constrain, interpret_kernels, laid_out, platform

Normalize = Callable[[jax.Array], jax.Array]


def self_attention(
    x: Float[Array, "batch length width"],
    qkv: Weights,
    out: Weights,
    *,
    causal: bool = False,
    bias: Float[Array, "_examples _heads length length"] | None = None,
    normalize: tuple[Normalize, Normalize] | None = None,
    implementation: str | None = None,
) -> Float[Array, "batch length width"]:
    """Projects tokens to queries, keys and values, attends, and projects back.

    Args:
        x: tokens (B, N, D).
        qkv: kernel (D, 3, H, K) and bias (3, H, K) of the fused projection.
        out: kernel (H, K, D) and bias (D,) of the output projection.
        causal: whether a token attends only to those before it and to itself.
        bias: added to the scaled scores, (P, H or 1, N, N), see `attention`.
        normalize: functions of the queries and of the keys (QK-norm); None for none.
        implementation: key of `SELF_ATTENTION`; by default "packed" where attention is the kernel
            for whole sequences, "flat" on CPUs, "split" elsewhere.

    Returns:
        (B, N, D), dtype of `x`.
    """
    if implementation is None:
        shape = (*x.shape[:2], *qkv[0].shape[2:])
        packed = choose(shape, x.shape[1], x.dtype, masked=bias is not None) == "pallas"
        implementation = "packed" if packed else "flat" if platform() == "cpu" else "split"
    function = lookup(SELF_ATTENTION, implementation, "implementation of self-attention")
    return function(x, qkv, out, causal, bias, normalize)


def _flat(
    x: jax.Array,
    qkv: Weights,
    out: Weights,
    causal: bool,
    bias: jax.Array | None,
    normalize: tuple[Normalize, Normalize] | None,
) -> jax.Array:
    """Fused projection of (B N, D). XLA:CPU contracts (B, N, D) slowly, see `ops.mlp`."""
    batch, length, width = x.shape
    heads = linear(x.reshape(-1, width), qkv)
    heads = heads.reshape(batch, length, *heads.shape[1:])
    heads = constrain(heads, "batch", "length", None, "heads", None)
    q, k, v = _normalized(jnp.moveaxis(heads, 2, 0), normalize)
    x = attention(q, k, v, causal=causal, bias=bias)
    return linear(x.reshape(batch * length, *x.shape[2:]), out, 2).reshape(batch, length, width)


def _split(
    x: jax.Array,
    qkv: Weights,
    out: Weights,
    causal: bool,
    bias: jax.Array | None,
    normalize: tuple[Normalize, Normalize] | None,
) -> jax.Array:
    """Three projections. The gradient of a fused result would be stacked, that is copied."""
    kernel, offset = qkv

    def project(i: int) -> jax.Array:
        heads = jnp.einsum("bnd,dhk->bnhk", x, kernel[:, i]) + offset[i]
        # Tokens are the minor dimension in the gradients' matmuls; this layout saves a copy.
        return laid_out(constrain(heads, "batch", "length", "heads", None), (0, 2, 3, 1))

    q, k, v = _normalized([project(i) for i in range(3)], normalize)
    x = attention(q, k, v, causal=causal, bias=bias)
    kernel, offset = out
    return jnp.einsum("bnhk,hkd->bnd", x, kernel) + offset


def _packed(
    x: jax.Array,
    qkv: Weights,
    out: Weights,
    causal: bool,
    bias: jax.Array | None,
    normalize: tuple[Normalize, Normalize] | None,
) -> jax.Array:
    """Heads side by side in the last dimension: the layout of matmuls and of the kernel."""
    kernel, offset = qkv
    width, _, num_heads, head_dim = kernel.shape
    offset = offset.reshape(3, num_heads * head_dim)

    def project(i: int) -> jax.Array:
        features = jnp.einsum("bnd,dm->bnm", x, kernel[:, i].reshape(width, -1))
        return constrain(features, "batch", "length", "heads")

    q, k, v = (project(i) for i in range(3))
    if normalize is not None:  # the norm follows the bias, which the kernel then cannot add
        shape = (*x.shape[:2], num_heads, head_dim)
        q = normalize[0]((q + offset[0]).reshape(shape)).reshape(q.shape)
        k = normalize[1]((k + offset[1]).reshape(shape)).reshape(k.shape)
        v = v + offset[2]
    options = Options(head_dim, causal, bias is not None, interpret=interpret_kernels())
    x = whole_sequence_attention(
        q, k, v, options, projection_bias=None if normalize else offset, bias=bias
    )
    kernel, offset = out
    return jnp.einsum("bnm,md->bnd", x, kernel.reshape(-1, kernel.shape[-1])) + offset


def _reference(
    x: jax.Array,
    qkv: Weights,
    out: Weights,
    causal: bool,
    bias: jax.Array | None,
    normalize: tuple[Normalize, Normalize] | None,
) -> jax.Array:
    """The definition, without constraints."""
    heads = jnp.moveaxis(jnp.einsum("bnd,dchk->bnchk", x, qkv[0]) + qkv[1], 2, 0)
    q, k, v = _normalized(heads, normalize)
    x = attention(q, k, v, causal=causal, bias=bias, implementation="reference")
    return jnp.einsum("bnhk,hkd->bnd", x, out[0]) + out[1]


def _normalized(
    qkv: jax.Array | list[jax.Array], normalize: tuple[Normalize, Normalize] | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v = qkv
    return (q, k, v) if normalize is None else (normalize[0](q), normalize[1](k), v)


SELF_ATTENTION = {"reference": _reference, "flat": _flat, "split": _split, "packed": _packed}
