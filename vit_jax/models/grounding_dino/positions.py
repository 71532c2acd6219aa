"""Sine positions of tokens, feature maps and boxes (DAB-DETR, Liu et al. 2022, section 4.3)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

_TURN = np.float32(2 * np.pi)
_EPSILON = 1e-6  # added to the size of a map
BOX_TEMPERATURE = 1e4


def sine_positions(
    x: Float[Array, "*shape"], width: int, temperature: float = BOX_TEMPERATURE
) -> Float[Array, "*shape {width}"]:
    """Encodes numbers by sines and cosines, in turn, of decreasing frequencies.

    Args:
        x: numbers, of which 1 is a whole turn of the highest frequency.
        width: number of features, even.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        float32 (..., width).
    """
    rates = np.float32(temperature ** (2 * np.arange(width // 2) / width))
    angles = (x[..., None] * _TURN) / rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*x.shape, width)


def map_positions(
    mask: Bool[Array, "batch rows columns"], width: int, temperature: float
) -> Float[Array, "batch rows columns {width}"]:
    """Encodes the positions of a feature map: half of the features the row, half the column.

    Args:
        mask: whether a position belongs to the image, and not to its padding, (B, h, w).
        width: number of features, a multiple of 4.
        temperature: see `sine_positions`.

    Returns:
        float32 (B, h, w, width).
    """
    parts = []
    for axis in (1, 2):
        count = jnp.cumsum(mask.astype(jnp.float32), axis)
        whole = jnp.take(count, jnp.array([-1]), axis=axis)
        parts.append(sine_positions(count / (whole + _EPSILON), width // 2, temperature))
    return jnp.concatenate(parts, axis=-1)


def box_positions(
    boxes: Float[Array, "batch boxes 4"], width: int
) -> Float[Array, "batch boxes 4*{width}"]:
    """Encodes boxes: the features of center y, center x, width and height.

    Args:
        boxes: center x, center y, width, height in [0, 1], (B, Q, 4).
        width: number of features of each coordinate, even.

    Returns:
        float32 (B, Q, 4 width).
    """
    encoded = sine_positions(boxes[..., jnp.array([1, 0, 2, 3])], width)
    return encoded.reshape(*boxes.shape[:-1], 4 * width)
