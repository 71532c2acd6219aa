"""Bilinear sampling of feature maps at points, and deformable attention.

Samples are gathered in a loop over the corners of cells, and over the levels of deformable
attention: one gather is compiled instead of one for each of them, which takes an XLA compiler
minutes. The backward pass computes the samples again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Steps to the right and below of the four cells around a point.
_CORNERS = np.array([(0, 0), (1, 0), (0, 1), (1, 1)], np.float32)


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
    x, y = (points[..., i].astype(jnp.float32) for i in (0, 1))

    def add(found: jax.Array, corner: jax.Array) -> jax.Array:
        cell, share = _cell(x, y, jnp.float32([width, height]), corner)
        return found + _take(flat, cell) * share[..., None].astype(flat.dtype)

    return _loop(add, jnp.zeros((*x.shape, channels), flat.dtype), jnp.asarray(_CORNERS))


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
    batch, queries, heads, levels, samples, _ = points.shape
    by_head = jnp.swapaxes(values, 1, 2)
    by_level = (levels, batch, heads, queries, samples)
    x, y = (jnp.transpose(points[..., i].astype(jnp.float32), (3, 0, 2, 1, 4)) for i in (0, 1))
    weights = jnp.transpose(weights, (3, 0, 2, 1, 4))
    cells = jnp.asarray(np.asarray(sizes, np.float32)[:, ::-1])
    starts = jnp.asarray(np.cumsum([0, *(rows * columns for rows, columns in sizes[:-1])]))

    def add(found: jax.Array, step: tuple[jax.Array, jax.Array]) -> jax.Array:
        level, corner = step
        cell, share = _cell(x[level], y[level], cells[level], corner)
        share = (share * weights[level]).astype(values.dtype)
        taken = _take(by_head, (cell + starts[level]).reshape(batch, heads, -1))
        taken = taken.reshape(*by_level[1:], -1)
        return found + jnp.einsum("bhqsd,bhqs->bqhd", taken, share)

    steps = jnp.repeat(jnp.arange(levels), len(_CORNERS)), jnp.tile(_CORNERS, (levels, 1))
    return _loop(add, jnp.zeros((batch, queries, heads, values.shape[-1]), values.dtype), steps)


def _cell(
    x: jax.Array, y: jax.Array, size: jax.Array, corner: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The position of one of the four cells around each point, and its share of the sample.

    Args:
        x: x as a fraction of the width.
        y: y as a fraction of the height.
        size: columns and rows of the map.
        corner: row of `_CORNERS`.
    """
    inside, share, place = jnp.ones((), bool), jnp.ones(()), []
    for position, count, step in ((x, size[0], corner[0]), (y, size[1], corner[1])):
        position = position * count - 0.5
        first = jnp.floor(position)
        after = position - first  # fraction of the way to the next cell
        share = share * jnp.where(step > 0, after, 1 - after)
        inside = inside & (first + step >= 0) & (first + step < count)
        place.append(first + step)
    cell = jnp.where(inside, place[1] * size[0] + place[0], 0).astype(jnp.int32)
    return cell, jnp.where(inside, share, 0)


def _take(flat: jax.Array, cell: jax.Array) -> jax.Array:
    """Features (..., S, C) at positions (..., N)."""
    return jnp.take_along_axis(flat, cell[..., None], axis=-2, mode="promise_in_bounds")


def _loop(add: Callable[[jax.Array, Any], jax.Array], start: jax.Array, steps: Any) -> jax.Array:
    """Adds up the results of steps, without keeping the samples for the backward pass."""
    found, _ = jax.lax.scan(lambda x, step: (jax.checkpoint(add)(x, step), None), start, steps)
    return found
