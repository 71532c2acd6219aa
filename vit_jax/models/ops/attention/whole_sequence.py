"""Attention over whole sequences as a Pallas kernel for TPUs, with its gradient.

Queries, keys and values keep the layout of their projections, (batch, length, heads * head_dim), so
that no copy stands before or after the kernel. A program holds whole sequences in VMEM, and no
scores are written to memory. The biases of the projections are added inside, where neither they nor
their gradients cost a pass over memory.

Shapes: batch B, queries N, keys M, heads H of K features.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vit_jax.models import partitioning
from vit_jax.models.ops.attention.kernel_bodies import Body
from vit_jax.models.ops.tiles import LANES, largest_divisor, padded

# Bytes of VMEM by generation; others have at least as much as the newest of these.
_VMEM = {"TPU v4": 16 << 20, "TPU v5": 64 << 20, "TPU v5p": 64 << 20}
_DEFAULT_VMEM = 64 << 20
_DEFAULT_LIMIT = 16 << 20  # what the compiler gives to a kernel that asks for nothing
# Short sequences share a program, which otherwise waits between its operations: up to this many
# pairs of an example and a head, since the code grows with them, and this many queries or keys.
_MAX_PAIRS, _MAX_ROWS = 8, 512


@dataclasses.dataclass(frozen=True)
class Options:
    """Constants of a call.

    Attributes:
        head_dim: number of features of a head K.
        causal: whether a query attends only to the keys up to its own index.
        bias_gradient: whether the gradient of the additive bias is wanted.
        interpret: whether to run the kernel as ordinary JAX operations, on any platform.
    """

    head_dim: int
    causal: bool = False
    bias_gradient: bool = False
    interpret: bool = False


def whole_sequence_attention(
    query: Float[Array, "batch queries features"],
    key: Float[Array, "batch keys features"],
    value: Float[Array, "batch keys features"],
    options: Options,
    *,
    projection_bias: Float[Array, "3 features"] | None = None,
    bias: Float[Array, "examples _heads _queries keys"] | None = None,
) -> Float[Array, "batch queries features"]:
    """Computes softmax(query key^T / sqrt(K) + bias) value for each head.

    Args:
        query: (B, N, H K).
        key: (B, M, H K).
        value: (B, M, H K).
        options: width of the heads, mask and gradients.
        projection_bias: added to queries, keys and values, (3, H K); None for none.
        bias: added to the scores, (P, H or 1, N or 1, M). P divides B; example b has the bias of
            b mod P.

    Returns:
        (B, N, H K), dtype of `query`.
    """
    biases = None
    if projection_bias is not None:
        biases = tuple(projection_bias.astype(jnp.float32)[:, None])
    if bias is not None:
        if options.bias_gradient:
            heads = query.shape[-1] // options.head_dim
            bias = jnp.broadcast_to(bias, (len(bias), heads, query.shape[1], key.shape[1]))
        bias = jnp.swapaxes(bias, 2, 3).astype(jnp.float32)  # the kernel's scores are transposed
    return _attention(options, query, key, value, biases, bias)


def fits(queries: int, keys: int, num_heads: int, head_dim: int, itemsize: int) -> bool:
    """Whether a program of the backward pass fits into VMEM, with any mask or bias.

    Args:
        queries: number of queries N.
        keys: number of keys M.
        num_heads: number of heads H of a device.
        head_dim: features of a head K.
        itemsize: bytes of an element of the queries.
    """
    lanes = _block_lanes(num_heads, head_dim)
    return _needed_bytes(queries, keys, lanes, head_dim, itemsize) <= 0.9 * _vmem_bytes()


def _needed_bytes(queries: int, keys: int, lanes: int, head_dim: int, itemsize: int) -> int:
    """VMEM of a program of the backward pass for one example, at most."""
    heads, lanes = lanes // head_dim, padded(lanes, LANES)
    rows = 3 * padded(queries, 8) + 4 * padded(keys, 8)  # q, dout, dq; k, v, dk, dv
    blocks = 2 * rows * lanes * itemsize  # twice, since the next ones are loaded meanwhile
    sums = (padded(queries, 8) + 2 * padded(keys, 8)) * lanes * 4
    scores = (4 + 2 * heads) * padded(keys, 8) * padded(queries, LANES) * 4
    return blocks + sums + scores


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    options: Options, q: jax.Array, k: jax.Array, v: jax.Array, biases: Any, bias: Any
) -> jax.Array:
    return _forward(options, q, k, v, biases, bias)[0]


def _forward(
    options: Options, q: jax.Array, k: jax.Array, v: jax.Array, biases: Any, bias: Any
) -> tuple[jax.Array, Any]:
    inputs = (q, k, v, biases, bias)
    axes = _axes(options, inputs)
    call = partitioning.per_shard(functools.partial(_call, options), axes, axes[0])
    return call(*inputs), inputs


def _backward(options: Options, inputs: Any, dout: jax.Array) -> Any:
    axes = _axes(options, inputs)
    tokens, _, _, biases, bias = axes
    # Each shard of the batch has its own sums over the examples, along a new first dimension.
    dbiases = jax.tree.map(lambda spec: PartitionSpec(tokens[0], *spec), biases)
    per_example = bias is not None and bias[0] is not None
    dbias = None
    if options.bias_gradient:
        dbias = bias if per_example else PartitionSpec(tokens[0], *bias)

    def call(inputs: Any, dout: jax.Array) -> Any:
        gradients, dbiases, dbias = _call_gradients(options, inputs, dout)
        if dbias is not None and not per_example:
            dbias = dbias[None]
        return gradients, jax.tree.map(lambda x: x[None], dbiases), dbias

    call = partitioning.per_shard(call, (axes, tokens), ((tokens,) * 3, dbiases, dbias))
    gradients, dbiases, dbias = call(inputs, dout)
    dbiases = jax.tree.map(lambda x: jnp.sum(x, axis=0), dbiases)
    if dbias is None:
        dbias = jax.tree.map(jnp.zeros_like, inputs[4])
    elif not per_example:
        dbias = jnp.sum(dbias, axis=0)
    return *gradients, dbiases, dbias


_attention.defvjp(_forward, _backward)


def _axes(options: Options, inputs: Any) -> Any:
    """Logical dimensions of the inputs, as far as they are split over devices."""
    q, _, _, biases, bias = inputs
    heads = partitioning.split_axis("heads", q.shape[-1] // options.head_dim)
    period = 1 if bias is None else len(bias)
    batch = partitioning.split_axis("batch", len(q))
    per_example = period == len(q) and batch is not None
    if not per_example and len(q) % (partitioning.shards("batch") * period):
        batch = None  # the biases of a device would not repeat evenly
    tokens = PartitionSpec(batch, None, heads)
    projection = None if biases is None else (PartitionSpec(None, heads),) * 3
    additive = None
    if bias is not None:
        example, head = batch if per_example else None, heads if bias.shape[1] > 1 else None
        additive = PartitionSpec(example, head, None, None)
    return tokens, tokens, tokens, projection, additive


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Grid and blocks of the kernel on one device."""

    grid: tuple[int, int, int]  # head blocks, examples of the bias, repeats of the bias
    queries: pl.BlockSpec
    keys: pl.BlockSpec
    projection: pl.BlockSpec
    bias: pl.BlockSpec | None
    vmem_bytes: int
    body: Body


def _blocks(options: Options, inputs: Any) -> _Blocks:
    q, k, _, biases, bias = inputs
    (batch, queries, width), keys = q.shape, k.shape[1]
    lanes = _block_lanes(width // options.head_dim, options.head_dim)
    heads, period = lanes // options.head_dim, 1 if bias is None else len(bias)
    # Examples of one program differ in their biases, or share the only one.
    count = batch if period == 1 else period
    examples = largest_divisor(count, min(_MAX_PAIRS // heads, _MAX_ROWS // max(queries, keys)))
    own = period // examples if period > 1 else 1

    def tokens(length: int) -> pl.BlockSpec:
        shape = (examples, length, lanes)
        return pl.BlockSpec(shape, lambda head, own_bias, i: (i * own + own_bias, 0, head))

    bias_spec, bias_shape = None, None
    if bias is not None:
        per_head = bias.shape[1] > 1
        bias_shape = (examples if period > 1 else 1, heads if per_head else 1)
        bias_spec = pl.BlockSpec(
            (*bias_shape, *bias.shape[2:]),
            lambda head, own_bias, i: (own_bias, head if per_head else 0, 0, 0),
        )
    return _Blocks(
        grid=(width // lanes, own, batch // examples // own),
        queries=tokens(queries),
        keys=tokens(keys),
        projection=pl.BlockSpec((1, lanes), lambda head, own_bias, i: (0, head)),
        bias=bias_spec,
        vmem_bytes=examples
        * _needed_bytes(queries, keys, lanes, options.head_dim, q.dtype.itemsize),
        body=Body(
            head_dim=options.head_dim,
            causal=options.causal,
            projection_bias=biases is not None,
            bias_shape=bias_shape,
        ),
    )


def _call(options: Options, *inputs: Any) -> jax.Array:
    """Outputs on one device."""
    blocks, q = _blocks(options, inputs), inputs[0]
    return pl.pallas_call(
        blocks.body.forward,
        grid=blocks.grid,
        in_specs=_in_specs(blocks),
        out_specs=blocks.queries,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=_compiler_params(blocks),
        interpret=options.interpret,
        name="attention",
    )(*jax.tree.leaves(inputs))


def _call_gradients(options: Options, inputs: Any, dout: jax.Array) -> Any:
    """Gradients of queries, keys and values; of their biases; of the additive bias."""
    blocks = _blocks(options, inputs)
    q, k, v, biases, bias = inputs
    out_specs: Any = (
        (blocks.queries, blocks.keys, blocks.keys),
        jax.tree.map(lambda _: blocks.projection, biases),
        blocks.bias if options.bias_gradient else None,
    )
    out_arrays = ((q, k, v), biases, bias if options.bias_gradient else None)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), out_arrays)
    found = pl.pallas_call(
        functools.partial(blocks.body.backward, bias_gradient=options.bias_gradient),
        grid=blocks.grid,
        in_specs=[*_in_specs(blocks), blocks.queries],
        out_specs=jax.tree.leaves(out_specs),
        out_shape=jax.tree.leaves(shapes),
        compiler_params=_compiler_params(blocks),
        interpret=options.interpret,
        name="attention_gradient",
    )(*jax.tree.leaves(inputs), dout)
    return jax.tree.unflatten(jax.tree.structure(out_arrays), found)


def _in_specs(blocks: _Blocks) -> list[pl.BlockSpec]:
    specs = [blocks.queries, blocks.keys, blocks.keys]
    specs += [blocks.projection] * 3 if blocks.body.projection_bias else []
    return specs if blocks.bias is None else [*specs, blocks.bias]


def _compiler_params(blocks: _Blocks) -> pltpu.CompilerParams:
    # XLA keeps its own arrays in what is left of VMEM, so that no more is reserved than needed.
    needed = int(1.5 * blocks.vmem_bytes)
    limit = None if needed < _DEFAULT_LIMIT else min(needed, int(0.95 * _vmem_bytes()))
    return pltpu.CompilerParams(
        # Programs of one block of heads add to the same sums, one after the other.
        dimension_semantics=("parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=limit,
    )


def _block_lanes(num_heads: int, head_dim: int) -> int:
    """Lanes of a block: whole heads in whole tiles, or all heads."""
    lanes, width = math.lcm(head_dim, LANES), num_heads * head_dim
    return lanes if width % lanes == 0 else width


def _vmem_bytes() -> int:
    return _VMEM.get(partitioning.device_kind(), _DEFAULT_VMEM)
