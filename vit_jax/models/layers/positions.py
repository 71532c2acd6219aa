"""Position embeddings on a 2-D grid."""

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError


def resize_positions(
    table: jax.Array, old: tuple[int, int], new: tuple[int, int], num_prefix: int
) -> jax.Array:
    """Resizes position embeddings on their 2-D grid: bicubic with antialias, in float32.

    Args:
        table: (num_prefix + old_h * old_w, D).
        old: grid the table was made for, (rows, columns).
        new: grid wanted.
        num_prefix: leading rows (class and distillation tokens) that are kept as they are.

    Returns:
        (num_prefix + new_h * new_w, D).
    """
    if old == new:
        return table
    prefix, grid = table[:num_prefix], table[num_prefix:]
    grid = grid.astype(jnp.float32).reshape(*old, -1)
    grid = jax.image.resize(grid, (*new, grid.shape[-1]), "bicubic", antialias=True)
    return jnp.concatenate([prefix, grid.reshape(new[0] * new[1], -1).astype(table.dtype)])


def sincos_positions(grid: tuple[int, int], width: int, temperature: float = 1e4) -> jax.Array:
    """Sines and cosines of the two coordinates (MoCo v3, MAE): float32 (rows * columns, D).

    The first half of the features is of the column, the second of the row; within each, sines come
    before cosines.

    Args:
        grid: rows and columns.
        width: D, a multiple of 4.
        temperature: ratio of the longest to the shortest wavelength.
    """
    if width % 4:
        raise UserError(f"sin-cos positions need a width divisible by 4, found {width}")
    rows, columns = jnp.meshgrid(*map(jnp.arange, grid), indexing="ij")
    rates = temperature ** -(jnp.arange(width // 4) / (width // 4))
    angles = [x.reshape(-1, 1) * rates for x in (columns, rows)]
    return jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=1)
