"""Feature maps of several resolutions, and the concatenation of their positions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from vit_jax.models.sizes import Size


def nearest(old: int, new: int) -> Int32[np.ndarray, " new"]:
    """Finds the position that is nearest to each one of a resized axis, as torch's `interpolate`.

    Args:
        old: number of positions.
        new: number of positions after resizing.
    """
    at = np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new))
    return np.minimum(at, old - 1).astype(np.int32)


def full_sizes(
    images: Float[Array, "batch height width 3"], sizes: Int[Array, "batch 2"] | None
) -> Int[Array, "batch 2"]:
    """Returns the sizes of images without their padding, those of the inputs if there is none.

    Args:
        images: inputs (B, H, W, 3).
        sizes: height and width of each image, px (B, 2), or None.
    """
    if sizes is not None:
        return sizes
    return jnp.broadcast_to(jnp.asarray(images.shape[1:3]), (len(images), 2))


def flatten_maps(maps: Sequence[jax.Array]) -> jax.Array:
    """Concatenates the positions of maps (B, h, w, D) to (B, S, D)."""
    return jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)


def split_maps(x: jax.Array, sizes: Sequence[Size]) -> list[jax.Array]:
    """Splits an array (B, S, ...) into maps (B, h, w, ...), the inverse of `flatten_maps`.

    Args:
        x: values of all positions.
        sizes: rows and columns of each map; S is the sum of their products.
    """
    ends = np.cumsum([rows * columns for rows, columns in sizes])[:-1]
    parts = jnp.split(x, ends.tolist(), axis=1)
    return [
        part.reshape(len(x), *size, *x.shape[2:]) for part, size in zip(parts, sizes, strict=True)
    ]
