"""Attention over sequences that do not fit into VMEM: JAX's splash attention for TPUs."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vit_jax.models import partitioning
from vit_jax.models.ops.tiles import LANES, padded

_BLOCK = 512  # queries and keys of a program


def long_sequence_attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    *,
    causal: bool = False,
    interpret: bool = False,
) -> Float[Array, "batch queries heads head_dim"]:
    """Computes softmax(query key^T / sqrt(K)) value for each head.

    Args:
        query: (B, N, H, K).
        key: (B, M, H, K).
        value: (B, M, H, K).
        causal: whether a query attends only to the keys up to its own index.
        interpret: whether to run the kernel as ordinary JAX operations, on any platform.

    Returns:
        (B, N, H, K), dtype of `query`.
    """
    batch = partitioning.split_axis("batch", len(query))
    heads = partitioning.split_axis("heads", query.shape[2])
    axes = PartitionSpec(batch, None, heads, None)
    call = functools.partial(_call, causal, interpret)
    return partitioning.per_shard(call, (axes,) * 3, axes)(query, key, value)


def _call(
    causal: bool, interpret: bool, query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
    """Attention on one device. Sequences are padded to whole blocks; padding is a segment."""
    queries, keys, head_dim = query.shape[1], key.shape[1], query.shape[-1]
    block = min(_BLOCK, padded(max(queries, keys), LANES))
    sizes = splash.BlockSizes(*(block,) * 8)
    shape = padded(queries, block), padded(keys, block)
    mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * query.shape[2]),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    lengths = zip(shape, (queries, keys), strict=True)
    segments = splash.SegmentIds(
        *((jnp.arange(n) >= used).astype(jnp.int32) for n, used in lengths)
    )

    def in_blocks(x: jax.Array, length: int) -> jax.Array:
        width = padded(head_dim, LANES) - head_dim
        return jnp.pad(
            jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, width))
        )

    operands = (
        in_blocks(query * head_dim**-0.5, shape[0]),
        in_blocks(key, shape[1]),
        in_blocks(value, shape[1]),
    )
    out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(*operands, segments)
    return jnp.swapaxes(out, 1, 2)[:, :queries, :, :head_dim].astype(query.dtype)
