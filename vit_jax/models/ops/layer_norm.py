"""LayerNorm of a residual stream: one pass over memory forward and one backward on TPUs.

XLA computes the statistics, the normalisation and the gradients in separate passes, and sums along
lanes in most of them. The kernel reads each array once, and adds the gradient of the residual
branch while it has the tokens at hand.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vit_jax.models import partitioning
from vit_jax.models.ops.tiles import largest_divisor

# Elements of a block. The backward pass needs 40 bytes of VMEM for each, and a TPU v4 has 16 MiB.
_MAX_ELEMENTS = 512 * 768
_ROWS = 16  # tokens of a tile in bfloat16
Tokens = Float[Array, "batch length width"]


def normalize_branch(
    x: Tokens,
    scale: Float[Array, " width"],
    bias: Float[Array, " width"],
    epsilon: float,
    *,
    interpret: bool = False,
) -> tuple[Tokens, Tokens]:
    """Computes (x - mean) / sqrt(variance + epsilon) * scale + bias (Ba et al. 2016).

    Statistics are float32.

    Args:
        x: tokens (B, N, D).
        scale: (D,).
        bias: (D,).
        epsilon: constant added to the variance.
        interpret: whether to run the kernel as ordinary JAX operations, on any platform.

    Returns:
        The normalised tokens, and `x` for the residual branch, each (B, N, D), dtype of `x`.
    """
    scale, bias = (v.astype(jnp.float32)[None] for v in (scale, bias))
    return _normalize(epsilon, interpret, x, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(
    epsilon: float, interpret: bool, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _forward(epsilon, interpret, x, scale, bias)[0]


def _forward(
    epsilon: float, interpret: bool, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    axes = _axes(x)

    def call(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        tokens, vector, grid = _blocks(x)
        return pl.pallas_call(
            functools.partial(_forward_body, epsilon),
            grid=grid,
            in_specs=[tokens, vector, vector],
            out_specs=tokens,
            out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
            interpret=interpret,
            name="layer_norm",
        )(x, scale, bias)

    whole = PartitionSpec(None, None)
    y = partitioning.per_shard(call, (axes, whole, whole), axes)(x, scale, bias)
    return (y, x), (x, scale)


def _backward(epsilon: float, interpret: bool, saved: Any, gradients: Any) -> Any:
    x, scale = saved
    axes = _axes(x)

    def call(x: jax.Array, scale: jax.Array, dy: jax.Array, dx: jax.Array) -> Any:
        tokens, vector, grid = _blocks(x)
        shape = jax.ShapeDtypeStruct(scale.shape, scale.dtype)
        dx, dscale, dbias = pl.pallas_call(
            functools.partial(_backward_body, epsilon, x.shape[1]),
            grid=grid,
            in_specs=[tokens, vector, tokens, tokens],
            out_specs=[tokens, vector, vector],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), shape, shape],
            interpret=interpret,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
            name="layer_norm_gradient",
        )(x, scale, dy, dx)
        return dx, dscale[None], dbias[None]  # sums of each shard

    whole, sums = PartitionSpec(None, None), PartitionSpec(axes[0], None, None)
    call = partitioning.per_shard(call, (axes, whole, axes, axes), (axes, sums, sums))
    dx, dscale, dbias = call(x, scale, *gradients)
    return dx, jnp.sum(dscale, axis=0), jnp.sum(dbias, axis=0)


_normalize.defvjp(_forward, _backward)


def _forward_body(epsilon: float, x_ref: Any, scale_ref: Any, bias_ref: Any, y_ref: Any) -> None:
    normalized, _ = _normalized(x_ref, epsilon)
    y_ref[...] = (normalized * scale_ref[...] + bias_ref[...]).astype(y_ref.dtype)


def _backward_body(
    epsilon: float,
    length: int,
    x_ref: Any,
    scale_ref: Any,
    dy_ref: Any,
    residual_ref: Any,
    dx_ref: Any,
    dscale_ref: Any,
    dbias_ref: Any,
) -> None:
    part = pl.program_id(1)

    @pl.when((pl.program_id(0) == 0) & (part == 0))
    def _() -> None:
        dscale_ref[...] = jnp.zeros_like(dscale_ref)
        dbias_ref[...] = jnp.zeros_like(dbias_ref)

    normalized, inverse = _normalized(x_ref, epsilon)
    dy = dy_ref[...].astype(jnp.float32)
    if length % dy.shape[1]:  # the last part has rows after the end, which may hold anything
        row = part * dy.shape[1] + jax.lax.broadcasted_iota(jnp.int32, dy.shape, 1)
        dy, normalized = (jnp.where(row < length, a, 0.0) for a in (dy, normalized))
    dscale_ref[...] += jnp.sum(dy * normalized, axis=(0, 1))[None]
    dbias_ref[...] += jnp.sum(dy, axis=(0, 1))[None]
    scaled = dy * scale_ref[...]
    mean = jnp.mean(scaled, axis=-1, keepdims=True)
    along = jnp.mean(scaled * normalized, axis=-1, keepdims=True)
    dx = inverse * (scaled - mean - normalized * along)
    dx_ref[...] = (dx + residual_ref[...].astype(jnp.float32)).astype(dx_ref.dtype)


def _normalized(x_ref: Any, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Normalised tokens and 1 / sqrt(variance + epsilon), float32."""
    x = x_ref[...].astype(jnp.float32)
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centered * centered, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    return centered * inverse, inverse


def _axes(x: jax.Array) -> PartitionSpec:
    return PartitionSpec(partitioning.split_axis("batch", len(x)), None, None)


def _blocks(x: jax.Array) -> tuple[pl.BlockSpec, pl.BlockSpec, tuple[int, int]]:
    """Blocks of tokens and of vectors, and the grid: examples, parts of a sequence."""
    batch, length, width = x.shape
    most = max(_ROWS, _MAX_ELEMENTS // width // _ROWS * _ROWS)
    examples, rows = largest_divisor(batch, most // length), min(length, most)
    tokens = pl.BlockSpec((examples, rows, width), lambda i, j: (i, j, 0))
    vector = pl.BlockSpec((1, width), lambda i, j: (0, 0))
    return tokens, vector, (batch // examples, pl.cdiv(length, rows))
