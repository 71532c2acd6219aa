"""Boxes: conversions, areas, intersection over union and its generalisation.

A box is (left, top, right, bottom), "xyxy", or (center x, center y, width, height), "cxcywh", in
any unit. Every function is defined and differentiable for boxes without area.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Boxes = Float[Array, "*batch 4"]


def cxcywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Converts center, width and height to corners.

    Args:
        boxes: (..., 4), cxcywh.

    Returns:
        (..., 4), xyxy.
    """
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def xyxy_to_cxcywh(boxes: Boxes) -> Boxes:
    """Converts corners to center, width and height.

    Args:
        boxes: (..., 4), xyxy.

    Returns:
        (..., 4), cxcywh.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def box_area(boxes: Boxes) -> Float[Array, "*batch"]:
    """Area of boxes.

    Args:
        boxes: (..., 4), xyxy.

    Returns:
        (...), squared units of the boxes.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides[..., 0] * sides[..., 1]


def box_iou(
    boxes: Float[Array, "*batch n 4"], others: Float[Array, "*batch m 4"]
) -> Float[Array, "*batch n m"]:
    """Intersection over union of every pair of boxes.

    Args:
        boxes: (..., N, 4), xyxy.
        others: (..., M, 4), xyxy.

    Returns:
        (..., N, M), in [0, 1]; 0 for a pair without area.
    """
    intersection, union, _ = _overlap(boxes, others)
    return _ratio(intersection, union)


def generalized_box_iou(
    boxes: Float[Array, "*batch n 4"], others: Float[Array, "*batch m 4"]
) -> Float[Array, "*batch n m"]:
    """Generalised IoU of every pair of boxes (Rezatofighi et al. 2019, section 3).

    The intersection over union, minus the fraction of the smallest box around both that neither
    covers.

    Args:
        boxes: (..., N, 4), xyxy.
        others: (..., M, 4), xyxy.

    Returns:
        (..., N, M), in [-1, 1]; 0 for a pair whose surrounding box has no area.
    """
    intersection, union, hull = _overlap(boxes, others)
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def _overlap(boxes: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Areas of intersection, union and surrounding box of every pair, each (..., N, M)."""
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    inner = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    outer = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    intersection = jnp.prod(jnp.maximum(inner, 0), axis=-1)
    union = box_area(a) + box_area(b) - intersection
    return intersection, union, outer[..., 0] * outer[..., 1]


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Computes part / whole, and 0 without a gradient where `whole` is 0."""
    some = whole > 0
    return jnp.where(some, part / jnp.where(some, whole, 1), 0)
