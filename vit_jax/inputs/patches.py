"""Images that keep their aspect ratio, as sequences of patches.

NaFlex of SigLIP 2 (Tschannen et al. 2025, section 2.4.2): an image is scaled to a grid of whole
patches with at most N of them, and its sequence is padded to N.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

_EPSILON = 1e-5  # precision of the scale of an image
_GRID_BYTES = 4  # rows and columns, two bytes each, at the end of a packed image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PatchSequence:
    """Patches of a batch of images of several sizes.

    Attributes:
        values: normalised pixels, float32 (B, N, P * P * 3). Patches are ordered by rows, and so
            are the pixels of a patch. What follows the patches of an image is padding.
        grid: rows and columns of patches of each image, int32 (B, 2).
    """

    values: Any
    grid: Any

    def __len__(self) -> int:
        """Number of images."""
        return len(self.values)

    @property
    def mask(self) -> Bool[Array, "batch patches"]:
        """True for the patches of an image, False for padding."""
        counts = self.grid[:, 0] * self.grid[:, 1]
        return jnp.arange(self.values.shape[1]) < counts[:, None]


# The input of an image encoder, normalised.
Images = Float[Array, "batch height width 3"] | PatchSequence


def fitting_grid(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Computes the largest grid of patches of an image within a budget.

    The result is that of `get_image_size_for_max_num_patches` of transformers and of
    `get_image_size_for_seq` of timm: a side that fills a part of a patch is enlarged to the whole.

    Args:
        height: height of the image, px.
        width: width of the image, px.
        patch_size: side of a patch, px.
        max_patches: largest number of patches.

    Returns:
        Rows and columns, at least one each.

    Example:
        >>> fitting_grid(480, 640, patch_size=16, max_patches=256)
        (14, 18)
    """

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(s * scale / patch_size)) for s in (height, width))
        return rows, columns

    low, high = _EPSILON / 10, 100.0
    while high - low >= _EPSILON:
        middle = (low + high) / 2
        if math.prod(grid(middle)) <= max_patches:
            low = middle
        else:
            high = middle
    return grid(low)


def size_of_budget(max_patches: int, patch_size: int) -> tuple[int, int]:
    """Returns the size of an image that has a number of patches, as close to a square as possible.

    Args:
        max_patches: number of patches.
        patch_size: side of a patch, px.

    Returns:
        Height and width, px.
    """
    rows = next(n for n in range(math.isqrt(max_patches), 0, -1) if max_patches % n == 0)
    return rows * patch_size, max_patches // rows * patch_size


def packed_size(patch_size: int, max_patches: int) -> int:
    """Number of bytes of a packed image."""
    return max_patches * patch_size**2 * 3 + _GRID_BYTES


def pack(
    pixels: UInt8[np.ndarray, "height width 3"], patch_size: int, max_patches: int
) -> UInt8[np.ndarray, " packed"]:
    """Flattens an image to patches, padded with zeros, and the size of its grid.

    Args:
        pixels: image of whole patches.
        patch_size: side of a patch, px.
        max_patches: number of patches with padding.
    """
    rows, columns = (side // patch_size for side in pixels.shape[:2])
    patches = pixels.reshape(rows, patch_size, columns, patch_size, 3).swapaxes(1, 2)
    packed = np.zeros(packed_size(patch_size, max_patches), np.uint8)
    packed[: patches.size] = patches.reshape(-1)
    packed[-_GRID_BYTES:] = np.array([rows, columns], "<u2").view(np.uint8)
    return packed


def unpack(
    packed: UInt8[np.ndarray, " packed"], patch_size: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the image of `pack`.

    Args:
        packed: packed image.
        patch_size: side of a patch, px.
    """
    rows, columns = np.ascontiguousarray(packed[-_GRID_BYTES:]).view("<u2").tolist()
    patches = packed[: rows * columns * patch_size**2 * 3]
    patches = patches.reshape(rows, columns, patch_size, patch_size, 3).swapaxes(1, 2)
    return patches.reshape(rows * patch_size, columns * patch_size, 3)


def split_packed(
    packed: UInt8[Array, "batch packed"], patch_size: int
) -> tuple[UInt8[Array, "batch patches features"], Int[Array, "batch 2"]]:
    """Splits packed images into patches and grids, on the devices.

    Args:
        packed: packed images; a row of zeros, which fills up a batch, is an image of one patch.
        patch_size: side of a patch, px.

    Returns:
        Pixels (B, N, P * P * 3), and rows and columns (B, 2), int32.
    """
    patches = packed[:, :-_GRID_BYTES].reshape(len(packed), -1, patch_size**2 * 3)
    low_high = packed[:, -_GRID_BYTES:].reshape(-1, 2, 2).astype(jnp.int32)
    return patches, jnp.maximum(low_high[..., 0] + 256 * low_high[..., 1], 1)
