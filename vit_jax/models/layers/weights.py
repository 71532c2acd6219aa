"""Tables of positions in weight files."""

import dataclasses
import math
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.layers.grids import DEFAULT_RULE, can_fit_text, fit_text_positions
from vit_jax.models.layers.positions import resize_positions
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
        rule: name in `grids.RESIZE_RULES`.
        source: rows and columns of patches of the model that the file was saved for, if known.
    """

    grid: Grid
    num_prefix: int = 0
    rule: str = DEFAULT_RULE
    source: Grid | None = None

    @property
    def hint(self) -> str:
        """How to load a table of an unknown grid."""
        return "weights_size=(height, width) is the size of the images of the weights"

    def resized_from(self, source: "ResizePositions") -> Self:
        """Returns the same resizing for tables with the grid and by the rule of `source`."""
        return dataclasses.replace(self, source=source.grid, rule=source.rule)

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
        given = jnp.asarray(table)
        return np.asarray(resize_positions(given, old, self.grid, self.num_prefix, self.rule))

    def _grid_of(self, shape: Shape) -> Grid:
        count = shape[0] - self.num_prefix
        for grid in (self.source, self.grid):
            if grid is not None and math.prod(grid) == count:
                return grid
        return (round(count**0.5),) * 2


@dataclasses.dataclass(frozen=True)
class FitText:
    """Fitting of the positions of texts (context_length, D), see `fit_text_positions`.

    Attributes:
        rule: name in `grids.TEXT_RULES`.
    """

    rule: str

    @property
    def hint(self) -> str:
        """How to load a table of another length."""
        return "text={'context_length': N, 'position_resize': 'cut' or 'linear'} fits it"

    def resized_from(self, source: "FitText") -> Self:
        """Returns the same fitting: it does not depend on the model of the file."""
        del source
        return self

    def accepts(self, found: Shape, expected: Shape) -> bool:
        """Returns whether a table of shape `found` can be fitted to shape `expected`."""
        same_width = len(found) == 2 and found[1:] == expected[1:]
        return same_width and can_fit_text(found[0], expected[0], self.rule)

    def __call__(self, table: np.ndarray, expected: Shape) -> np.ndarray:
        """Fits a table."""
        return np.asarray(fit_text_positions(jnp.asarray(table), expected[0], self.rule))


def stored_positions(patches: jax.Array, num_prefix: int) -> np.ndarray:
    """Returns fixed positions as files store them.

    Args:
        patches: positions of the patches (rows * columns, D).
        num_prefix: number of tokens before the patches; their positions are zero.

    Returns:
        float32 (1, num_prefix + rows * columns, D).
    """
    return np.pad(np.asarray(patches), ((num_prefix, 0), (0, 0)))[None]
