"""Masks of patches in blocks (Bao et al. 2022, BEiT, algorithm 1), as iBOT and DINOv2 draw them."""

import math

import numpy as np
from jaxtyping import Bool

_ATTEMPTS = 10  # draws of a block until the mask is left as it is
_MIN_PATCHES = 4  # smallest area of a block
_LOG_ASPECT = math.log(1 / 0.3)  # of the most elongated block


def block_mask(
    rows: int, columns: int, count: int, rng: np.random.Generator
) -> Bool[np.ndarray, "{rows} {columns}"]:
    """Draws rectangles of patches until a number of patches is masked.

    A rectangle has an area between four patches and the number that is left, and a log-uniform
    aspect ratio between 0.3 and 1 / 0.3. It may overlap others. If none of ten draws adds between
    one and the number of patches that are left, the mask stays smaller than `count`.

    Args:
        rows: rows of patches.
        columns: columns of patches.
        count: largest number of masked patches, at least 1.
        rng: source of randomness.

    Returns:
        True for masked patches, of which there is at least one.
    """
    mask = np.zeros((rows, columns), np.bool_)
    while (left := count - int(mask.sum())) > 0:
        if not _add_block(mask, left, rng):
            break
    if not mask.any():
        mask[rng.integers(rows), rng.integers(columns)] = True
    return mask


def _add_block(mask: np.ndarray, left: int, rng: np.random.Generator) -> bool:
    """Masks one more block, if one of the draws fits."""
    rows, columns = mask.shape
    for _ in range(_ATTEMPTS):
        area = rng.uniform(min(_MIN_PATCHES, left), left)
        aspect = math.exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, first = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        block = mask[top : top + height, first : first + width]
        if 0 < block.size - block.sum() <= left:
            block[:] = True
            return True
    return False
