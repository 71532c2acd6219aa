"""Adaptive training sample selection (Zhang et al. 2020, "Bridging the Gap", section 3.3).

Boxes are (x0, y0, x1, y1) with inclusive corners, px, as those of `models/glip/anchors.py`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models.ops.boxes import box_iou

_MARGIN = 0.01  # px by which the center of a positive lies within its box


def assign_boxes(
    anchors: Float[Array, "positions 4"],
    counts: Sequence[int],
    boxes: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    candidates: int,
) -> Int[Array, " positions"]:
    """Chooses the box that each position of an image learns.

    The candidates of a box are the positions of each level whose centers are nearest to its own. A
    candidate is positive if its IoU reaches the mean of all candidates plus their standard
    deviation, and its center is in the box. A position that is positive for several boxes learns
    that of the highest IoU.

    Args:
        anchors: anchor of each position of all levels (S, 4).
        counts: number of positions of each level.
        boxes: annotated boxes (N, 4); anything for padding.
        valid: whether each box is no padding (N,).
        candidates: number of candidates of each level.

    Returns:
        Index of the box of each position, -1 for none, int32 (S,).
    """
    # The width of a box with inclusive corners is x1 - x0 + 1.
    overlap = box_iou(*(x + jnp.asarray([0, 0, 1, 1], x.dtype) for x in (boxes, anchors)))
    centers = _center(anchors)
    distance = jnp.linalg.norm(_center(boxes)[:, None] - centers, axis=-1)
    chosen, start = [], 0
    for count in counts:
        part = jax.lax.slice_in_dim(distance, start, start + count, axis=1)
        chosen.append(jax.lax.top_k(-part, min(candidates, count))[1] + start)
        start += count
    at = jnp.concatenate(chosen, axis=1)  # (N, candidates of all levels)
    found = jnp.take_along_axis(overlap, at, axis=1)
    least = jnp.mean(found, axis=1) + jnp.std(found, axis=1, ddof=1)
    positive = (found >= least[:, None]) & valid[:, None]
    sides = jnp.concatenate(_sides(centers[at], boxes[:, None]), axis=-1)
    positive &= jnp.min(sides, axis=-1) > _MARGIN
    rows = np.arange(len(boxes))[:, None]
    scores = (
        jnp.full(overlap.shape, -jnp.inf).at[rows, at].set(jnp.where(positive, found, -jnp.inf))
    )
    best = jnp.argmax(scores, axis=0).astype(jnp.int32)
    return jnp.where(jnp.max(scores, axis=0) > -jnp.inf, best, -1)


def centerness(
    anchors: Float[Array, "positions 4"], boxes: Float[Array, "batch positions 4"]
) -> Float[Array, "batch positions"]:
    """How central positions are in their boxes (Tian et al. 2019, "FCOS", section 3.3).

    Args:
        anchors: anchor of each position (S, 4), whose center is in the box.
        boxes: box of each position (B, S, 4).

    Returns:
        1 for the center and 0 for the border of the box (B, S).
    """
    before, after = _sides(_center(anchors), boxes)
    ratio = jnp.minimum(before, after) / jnp.maximum(before, after)
    return jnp.sqrt(ratio[..., 0] * ratio[..., 1])


def _center(boxes: jax.Array) -> jax.Array:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _sides(points: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distances of points from the left and upper, and from the right and lower sides."""
    return points - boxes[..., :2], boxes[..., 2:] - points
