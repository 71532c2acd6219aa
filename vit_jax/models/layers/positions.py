"""Position embeddings on a 2-D grid."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_jax.errors import UserError
from vit_jax.models.layers.grids import DEFAULT_RULE, resize_grid, resize_to_grids
from vit_jax.models.sizes import Size


def resize_positions(
    table: Float[Array, "old_length width"],
    old: Size,
    new: Size,
    num_prefix: int,
    rule: str = DEFAULT_RULE,
) -> Float[Array, "new_length width"]:
    """Resizes position embeddings on their grid, in float32.

    Args:
        table: (num_prefix + old_h * old_w, D).
        old: rows and columns that the table was made for.
        new: rows and columns of the result.
        num_prefix: number of leading rows, of class and distillation tokens, that are kept
            unchanged.
        rule: name in `grids.RESIZE_RULES`.

    Returns:
        (num_prefix + new_h * new_w, D), dtype of `table`.

    Raises:
        UserError: an unknown rule.
    """
    if old == new:
        return table
    prefix, grid = table[:num_prefix], table[num_prefix:]
    grid = resize_grid(grid.reshape(*old, -1), new, rule)
    return jnp.concatenate([prefix, grid.reshape(new[0] * new[1], -1).astype(table.dtype)])


def positions_of_grids(
    table: Float[Array, "old_length width"],
    old: Size,
    grids: Int[Array, "batch 2"],
    length: int,
    num_prefix: int,
    rule: str,
) -> Float[Array, "batch new_length width"]:
    """Resizes position embeddings to the grid of each image, in float32.

    Args:
        table: (num_prefix + old_h * old_w, D).
        old: rows and columns that the table was made for.
        grids: rows and columns of each image.
        length: number of patches per image with padding N.
        num_prefix: number of leading rows that are kept unchanged.
        rule: name in `grids.ANTIALIASED`.

    Returns:
        (B, num_prefix + N, D), dtype of `table`.

    Raises:
        UserError: another rule.
    """
    grid = table[num_prefix:].reshape(*old, -1)
    patches = resize_to_grids(grid, grids, length, rule).astype(table.dtype)
    prefix = jnp.broadcast_to(table[:num_prefix], (len(grids), num_prefix, table.shape[-1]))
    return jnp.concatenate([prefix, patches], axis=1)


def sincos_positions(
    grid: Size, width: int, temperature: float = 1e4
) -> Float[Array, "length {width}"]:
    """Computes fixed 2-D sine-cosine positions (MoCo v3, MAE).

    The first half of the features encodes the column, the second half the row. Within each half
    sines come before cosines.

    Args:
        grid: rows and columns.
        width: number of features D, a multiple of 4.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        float32 (rows * columns, D).

    Raises:
        UserError: a width that 4 does not divide.
    """
    if width % 4:
        raise UserError(f"sin-cos positions need a width divisible by 4, found {width}")
    rows, columns = jnp.meshgrid(*map(jnp.arange, grid), indexing="ij")
    rates = temperature ** -(jnp.arange(width // 4) / (width // 4))
    angles = [x.reshape(-1, 1) * rates for x in (columns, rows)]
    return jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=1)
