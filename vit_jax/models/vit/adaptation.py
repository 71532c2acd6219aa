"""Parameters of a ViT that are made from those of another configuration, for fine-tuning."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from vit_jax.models.layers.patch_embedding import resize_kernel
from vit_jax.models.layers.positions import resize_positions

if TYPE_CHECKING:
    from vit_jax.models.vit.model import ViTConfig


def adapt(
    path: str, value: jax.Array | None, source: "ViTConfig", target: "ViTConfig"
) -> jax.Array | None:
    """Makes a parameter from that of another configuration.

    Positions are resized to the grid of the new model, the kernel of the patch embedding to its
    patches; fixed positions initialise learned ones.

    Args:
        path: path of the parameter.
        value: parameter of the source; None if it has none.
        source: configuration that the value was made for.
        target: configuration of the new model.

    Returns:
        The parameter, or None if the value applies unchanged.
    """
    if path == "patch_embed/kernel" and value is not None:
        return resize_kernel(value, target.kernel_side)
    rows = source.num_position_rows
    if path != "positions" or (source.width, rows) != (target.width, target.num_position_rows):
        return None
    if value is None and source.position_init == "fixed_sincos":
        table = source.fixed_positions(source.table_grid, source.width)
        value = jnp.pad(table, ((rows, 0), (0, 0)))  # zeros for class and distillation token
    if value is None:
        return None
    grids = source.table_grid, target.table_grid
    return resize_positions(value, *grids, rows, source.position_resize)
