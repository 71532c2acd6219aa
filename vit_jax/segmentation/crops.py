"""Parts of an image, and grids of points in them (Kirillov et al. 2023, appendix B)."""

import itertools
import math

import numpy as np
from jaxtyping import Float32

from vit_jax.detection.images import Window


def crop_windows(height: int, width: int, layers: int, overlap: float) -> list[tuple[int, Window]]:
    """Divides an image into overlapping parts, as the authors and transformers.

    Args:
        height: height of the image, px.
        width: width of the image, px.
        layers: number of divisions; number i has 2^i x 2^i parts. Number 0 is the whole image.
        overlap: fraction of the shorter side of the image that parts of the first division share;
            those of the next ones share less.

    Returns:
        Number of the division, and top, left, height and width of each part.
    """
    found: list[tuple[int, Window]] = [(0, (0, 0, height, width))]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(height, width) * (2 / count))
        rows, columns = (
            math.ceil((shared * (count - 1) + side) / count) for side in (height, width)
        )
        for i, j in itertools.product(range(count), repeat=2):  # columns first
            left, top = (columns - shared) * i, (rows - shared) * j
            part = (top, left, min(rows, height - top), min(columns, width - left))
            found.append((layer, part))
    return found


def point_grid(count: int) -> Float32[np.ndarray, "points 2"]:
    """Returns x and y in [0, 1] of the centres of `count` x `count` squares, row by row.

    Args:
        count: number of points per side.
    """
    side = np.linspace(1 / (2 * count), 1 - 1 / (2 * count), count, dtype=np.float32)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
