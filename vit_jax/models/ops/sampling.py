"""Bilinear sampling of feature maps at points, and deformable attention."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def bilinear_sample(
    features: Float[Array, "*batch height width channels"], points: Float[Array, "*batch n 2"]
) -> Float[Array, "*batch n channels"]:
    """Interpolates features at points, with zeros outside of the map.

    Equal to torch's `grid_sample` with zero padding and `align_corners=False`, except for the unit
    of the points.

    Args:
        features: (..., H, W, C).
        points: (x, y) of each point as fractions of the width and of the height, (..., N, 2); the
            center of the first cell is at (0.5 / W, 0.5 / H).

    Returns:
        (..., N, C), dtype of `features`.
    """
    *batch, height, width, channels = features.shape
    flat = features.reshape(*batch, height * width, channels)
    position = points.astype(jnp.float32) * jnp.float32([width, height]) - 0.5
    first = jnp.floor(position)
    after = position - first  # fraction of the way to the next cell
    found = jnp.zeros((), features.dtype)
    for right in (0, 1):
        for below in (0, 1):
            cell = first + jnp.float32([right, below])
            inside = jnp.all((cell >= 0) & (cell < jnp.float32([width, height])), axis=-1)
            x, y = jnp.moveaxis(jnp.where(inside[..., None], cell, 0).astype(jnp.int32), -1, 0)
            weight_x, weight_y = (
                after[..., i] if end else 1 - after[..., i] for i, end in enumerate((right, below))
            )
            weight = jnp.where(inside, weight_x * weight_y, 0).astype(features.dtype)
            values = jnp.take_along_axis(flat, (y * width + x)[..., None], axis=-2)
            found = found + values * weight[..., None]
    return found


def deformable_attention(
    values: Float[Array, "batch length heads width"],
    sizes: Sequence[tuple[int, int]],
    points: Float[Array, "batch queries heads levels samples 2"],
    weights: Float[Array, "batch queries heads levels samples"],
) -> Float[Array, "batch queries heads width"]:
    """Multi-scale deformable attention (Zhu et al. 2021, Deformable DETR, section 4.1).

    Each head of each query takes a weighted sum of a few bilinear samples of every level.

    Args:
        values: the levels, flattened and concatenated, (B, S, heads, D).
        sizes: (height, width) of each level; S is the sum of their products.
        points: (x, y) of each sample as fractions of the width and of the height of its level,
            (B, Q, heads, levels, samples, 2). Samples outside are zero.
        weights: weight of each sample, (B, Q, heads, levels, samples).

    Returns:
        (B, Q, heads, D), dtype of `values`.
    """
    batch, _, heads, width = values.shape
    queries, samples = points.shape[1], points.shape[4]
    by_head = jnp.swapaxes(values, 1, 2)
    found = jnp.zeros((), values.dtype)
    start = 0
    for level, (rows, columns) in enumerate(sizes):
        part = jax.lax.slice_in_dim(by_head, start, start + rows * columns, axis=2)
        start += rows * columns
        at = jnp.swapaxes(points[:, :, :, level], 1, 2).reshape(batch, heads, -1, 2)
        sampled = bilinear_sample(part.reshape(batch, heads, rows, columns, width), at)
        sampled = sampled.reshape(batch, heads, queries, samples, width)
        weight = weights[:, :, :, level].astype(values.dtype)
        found = found + jnp.einsum("bhqsd,bqhs->bqhd", sampled, weight)
    return found
