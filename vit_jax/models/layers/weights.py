"""Tables of positions in weight files."""

import dataclasses
import math
from typing import Self

import jax.numpy as jnp
import numpy as np

from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.weights.transforms import Shape

Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ResizePositions:
    """Resizing of position embeddings (num_prefix + rows * columns, D), see `resize_positions`.

    A table whose number of rows is neither that of `source` nor that of `grid` is assumed to belong
    to a square grid.

    Attributes:
        grid: rows and columns of patches of the model.
        num_prefix: leading rows of the table, which are not resized.
        source: rows and columns of patches of the model that the file was saved for, if known.
    """

    grid: Grid
    num_prefix: int = 0
    source: Grid | None = None

    def resized_from(self, source: "ResizePositions") -> Self:
        """Returns the same resizing for tables with the grid of `source`."""
        return dataclasses.replace(self, source=source.grid)

    def accepts(self, found: Shape, expected: Shape) -> bool:
        """Returns whether a table of shape `found` can be resized to shape `expected`."""
        if len(found) != 2 or found[1:] != expected[1:] or found[0] <= self.num_prefix:
            return False
        return math.prod(self._grid_of(found)) == found[0] - self.num_prefix

    def __call__(self, table: np.ndarray, expected: Shape) -> np.ndarray:
        """Resizes a table."""
        del expected
        old = self._grid_of(table.shape)
        if old == self.grid:
            return table
        return np.asarray(resize_positions(jnp.asarray(table), old, self.grid, self.num_prefix))

    def _grid_of(self, shape: Shape) -> Grid:
        count = shape[0] - self.num_prefix
        for grid in (self.source, self.grid):
            if grid is not None and math.prod(grid) == count:
                return grid
        return (round(count**0.5),) * 2


def fixed_positions(grid: Grid, width: int, num_prefix: int) -> np.ndarray:
    """Returns the sine-cosine positions of MAE as its checkpoints store them.

    Args:
        grid: rows and columns of patches.
        width: width D of the tokens.
        num_prefix: number of tokens before the patches; their positions are zero.

    Returns:
        float32 (1, num_prefix + rows * columns, D).
    """
    table = np.asarray(sincos_positions(grid, width))
    return np.pad(table, ((num_prefix, 0), (0, 0)))[None]
