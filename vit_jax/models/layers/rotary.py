"""Rotary position embeddings (RoPE) of patches, as in DINOv3.

Siméoni et al. 2025, "DINOv3", section 3.2; Su et al. 2021, "RoFormer". The features of a head are
rotated in pairs (i, i + K / 2). The first half of the pairs follows the row, the other the column.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vit_jax.models.sizes import Size

# Rotation of each token and pair of features, radians; one for all examples or one per example.
Angles = Float[Array, "_examples length pairs"]


def patch_angles(
    grid: Size,
    num_features: int,
    num_prefix: int,
    *,
    temperature: float = 100.0,
    scale: float | Float[Array, ""] = 1.0,
) -> Float[Array, "1 length pairs"]:
    """Computes the rotation of each token.

    The centres of patches have coordinates in [-1, 1] on both axes, whatever the grid.

    Args:
        grid: rows and columns of patches.
        num_features: features of a head K, a multiple of 4.
        num_prefix: number of tokens before the patches, which are not rotated.
        temperature: ratio of the longest to the shortest period.
        scale: factor of the coordinates.

    Returns:
        float32 (1, num_prefix + rows * columns, K / 2), radians.
    """
    axes = [(2 * jnp.arange(n, dtype=jnp.float32) + 1) / n - 1 for n in grid]
    centres = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2) * scale
    periods = temperature ** (4 * jnp.arange(num_features // 4, dtype=jnp.float32) / num_features)
    angles = (2 * math.pi * centres[:, :, None] / periods).reshape(len(centres), -1)
    return jnp.pad(angles, ((num_prefix, 0), (0, 0)))[None]


def random_scale(rng: Key[Array, ""], factor: float) -> Float[Array, ""]:
    """Draws a factor of the coordinates for training at many resolutions.

    Args:
        rng: PRNG key.
        factor: largest scale R.

    Returns:
        float32, log-uniform in [1 / R, R].
    """
    return jnp.exp(jax.random.uniform(rng, (), jnp.float32, -1, 1) * math.log(factor))


def rotate(
    x: Float[Array, "batch length heads features"], angles: Angles
) -> Float[Array, "batch length heads features"]:
    """Rotates the features of queries or keys, in float32.

    Args:
        x: (B, N, H, K).
        angles: (B or 1, N, K / 2), radians.

    Returns:
        (B, N, H, K), dtype of `x`.
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
