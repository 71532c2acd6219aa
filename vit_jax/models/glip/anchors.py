"""Anchors and boxes relative to them, in the units of the original code (maskrcnn-benchmark).

A box is (x0, y0, x1, y1) with inclusive corners: its width is x1 - x0 + 1 px.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from vit_jax.models.sizes import Size

# Side of the anchor of a position, divided by the stride of its level.
ANCHOR_SCALE = 8
# Factors of the deltas of center and size (Girshick 2015, "Fast R-CNN", and later code).
CENTER_WEIGHT, SIZE_WEIGHT = 10.0, 5.0
_LARGEST = math.log(1000 / 16)  # of the logarithm of an enlargement


def make_anchors(sizes: Sequence[Size], strides: Sequence[int]) -> Float32[np.ndarray, "n 4"]:
    """Builds one square anchor for each position of each level.

    Args:
        sizes: rows and columns of each level.
        strides: distance of neighbouring positions of each level, px.

    Returns:
        x0, y0, x1, y1 with inclusive corners, px (S, 4).
    """
    found = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        y, x = (np.mgrid[:rows, :columns] * stride + (stride - 1) / 2).reshape(2, -1)
        reach = (ANCHOR_SCALE * stride - 1) / 2
        found.append(np.stack([x - reach, y - reach, x + reach, y + reach], axis=-1))
    return np.concatenate(found).astype(np.float32)


def decode_boxes(
    deltas: Float[Array, "batch n 4"], anchors: Float[Array, "n 4"] | Float32[np.ndarray, "n 4"]
) -> Float[Array, "batch n 4"]:
    """Moves and scales anchors.

    Args:
        deltas: change of the center divided by the size of the anchor, times 10, and logarithm of
            the enlargement, times 5; float32 (B, N, 4).
        anchors: x0, y0, x1, y1 with inclusive corners, px (N, 4).

    Returns:
        x0, y0, x1, y1 with inclusive corners, px (B, N, 4), not clipped.
    """
    low, high = anchors[:, :2], anchors[:, 2:]
    side = high - low + 1
    center = deltas[..., :2] / CENTER_WEIGHT * side + (low + high) / 2
    growth = jnp.minimum(deltas[..., 2:] / SIZE_WEIGHT, _LARGEST)
    reach = (jnp.exp(growth) * side - 1) / 2
    return jnp.concatenate([center - reach, center + reach], axis=-1)


def relative_boxes(
    boxes: Float[Array, "batch n 4"], sizes: Int[Array, "batch 2"]
) -> Float[Array, "batch n 4"]:
    """Clips boxes to their images and makes them relative.

    Corners are divided by the size of the image although they are inclusive, as in the original
    code: a box of the whole image ends one pixel before 1.

    Args:
        boxes: x0, y0, x1, y1 with inclusive corners, px (B, N, 4).
        sizes: height and width of each image, px (B, 2).

    Returns:
        Center x, center y, width, height in [0, 1], (B, N, 4).
    """
    extent = sizes[:, None, ::-1].astype(boxes.dtype)
    low, high = (jnp.clip(boxes[..., part], 0, extent - 1) for part in (slice(2), slice(2, 4)))
    return jnp.concatenate([(low + high) / 2 / extent, (high - low) / extent], axis=-1)
