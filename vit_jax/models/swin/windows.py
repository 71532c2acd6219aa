"""Windows of a feature map and relative positions within a window (Liu et al. 2021, section 3.2).

Everything that depends only on sizes is computed with NumPy while the model is traced.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vit_jax.errors import UserError, lookup
from vit_jax.models.layers.grids import RESIZE_RULES, resize_grid
from vit_jax.models.sizes import Size

# Added to the logits of two positions that only the cyclic shift made neighbours. This is the
# original value. It has to stay, since the weight of such a pair after the softmax is not zero.
MASKED = -100.0


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a feature map is cut into windows; plain integers, rows before columns.

    Attributes:
        map_size: rows and columns of the feature map (H, W).
        size: rows and columns of a window (h, w).
        shift: rows and columns by which the map is rolled up and to the left before it is cut.
        pad_first: whether the map is padded before it is rolled.
    """

    map_size: Size
    size: Size
    shift: Size
    pad_first: bool = False

    @property
    def counts(self) -> Size:
        """Number of windows down and across; those at the lower and right border may be padded."""
        return (
            -(-self.map_size[0] // self.size[0]),
            -(-self.map_size[1] // self.size[1]),
        )

    def partition(
        self, x: Shaped[Array, "batch rows columns channels"]
    ) -> Shaped[Array, "batch windows length channels"]:
        """Cuts a feature map into windows.

        The map is padded with zeros: after the roll as in timm, or before it with `pad_first`.

        Args:
            x: (B, H, W, C).

        Returns:
            (B, windows, h w, C).
        """
        (rows, columns), (height, width) = self.counts, self.size
        bottom, right = rows * height - x.shape[1], columns * width - x.shape[2]
        padding = ((0, 0), (0, bottom), (0, right), (0, 0))
        if self.pad_first:
            x = jnp.pad(x, padding)
        x = jnp.roll(x, (-self.shift[0], -self.shift[1]), axis=(1, 2))
        if not self.pad_first:
            x = jnp.pad(x, padding)
        x = x.reshape(x.shape[0], rows, height, columns, width, x.shape[-1])
        return x.swapaxes(2, 3).reshape(x.shape[0], rows * columns, height * width, x.shape[-1])

    def merge(
        self, x: Shaped[Array, "batch windows length channels"]
    ) -> Shaped[Array, "batch rows columns channels"]:
        """Reverts `partition`.

        Args:
            x: (B, windows, h w, C).

        Returns:
            (B, H, W, C).
        """
        (rows, columns), (height, width) = self.counts, self.size
        x = x.reshape(x.shape[0], rows, columns, height, width, x.shape[-1]).swapaxes(2, 3)
        x = x.reshape(x.shape[0], rows * height, columns * width, x.shape[-1])
        if not self.pad_first:
            x = x[:, : self.map_size[0], : self.map_size[1]]
        x = jnp.roll(x, self.shift, axis=(1, 2))
        return x[:, : self.map_size[0], : self.map_size[1]]

    def mask(self) -> np.ndarray | None:
        """Computes the bias that separates regions which the roll made neighbours.

        The regions are those of the padded map, as in timm. Where the map is padded, rows from the
        upper border are not all separated from the others, and padding is attended to.

        Returns:
            float32 (windows, h w, h w), or None for windows that are not shifted.
        """
        if not any(self.shift):
            return None
        (rows, columns), (height, width) = self.counts, self.size
        vertical = _regions(rows * height, height, self.shift[0])
        horizontal = _regions(columns * width, width, self.shift[1])
        regions = 3 * vertical[:, None] + horizontal
        regions = regions.reshape(rows, height, columns, width).swapaxes(1, 2)
        regions = regions.reshape(rows * columns, height * width)
        different = regions[:, :, None] != regions[:, None, :]
        return np.where(different, np.float32(MASKED), np.float32(0))


def _regions(length: int, window: int, shift: int) -> np.ndarray:
    """Numbers the regions of a map's rows: all except the last window, and its two parts."""
    regions = np.zeros(length, np.int32)
    if shift:
        regions[-window:-shift] = 1
        regions[-shift:] = 2
    return regions


def relative_index(size: Size) -> np.ndarray:
    """Computes the row of the bias table for each pair of positions in a window.

    The table has a row per difference (query minus key) of rows, then of columns, from -(h - 1) to
    h - 1 and from -(w - 1) to w - 1.

    Args:
        size: rows and columns of the window (h, w).

    Returns:
        Integers (h w, h w).
    """
    rows, columns = (c.reshape(-1) for c in np.indices(size))
    down = rows[:, None] - rows + size[0] - 1
    right = columns[:, None] - columns + size[1] - 1
    return down * (2 * size[1] - 1) + right


def num_offsets(size: Size) -> int:
    """Counts the rows of the bias table of a window.

    Args:
        size: rows and columns of the window.
    """
    return (2 * size[0] - 1) * (2 * size[1] - 1)


def _geometric(table: jax.Array, new: Size) -> jax.Array:
    down, right = (_geometric_weights(*n) for n in zip(table.shape[:2], new, strict=True))
    return jnp.einsum("ai,bj,ijh->abh", down, right, table, precision="highest")


# "geometric" (BEiT, timm): the known offsets are spread over the new ones in geometric progression,
# with linear interpolation between them. Offsets near 0 keep their meaning, and a smaller window
# takes approximately the middle of the table. The other rules resize the table as an image.
RESIZE_METHODS: dict[str, Callable[[jax.Array, Size], jax.Array]] = {
    "geometric": _geometric,
    **{rule: functools.partial(resize_grid, rule=rule) for rule in RESIZE_RULES},
}


def resize_bias_table(
    table: Float[Array, "old_offsets heads"], old: Size, new: Size, method: str
) -> Float[Array, "new_offsets heads"]:
    """Resizes a table of relative-position biases for another window, in float32.

    Args:
        table: ((2 old_h - 1)(2 old_w - 1), heads).
        old: rows and columns of the window that the table was made for.
        new: rows and columns of the new window.
        method: key of `RESIZE_METHODS`.

    Returns:
        ((2 new_h - 1)(2 new_w - 1), heads), dtype of `table`.

    Raises:
        UserError: a table of another window, or an unknown method.
    """
    resize = lookup(RESIZE_METHODS, method, "method to resize a bias table")
    if table.shape[0] != num_offsets(old):
        raise UserError(
            f"a window of {old[0]} x {old[1]} has a bias table of {num_offsets(old)} rows; "
            f"found {table.shape[0]}"
        )
    if old == new:
        return table
    grid = table.astype(jnp.float32).reshape(2 * old[0] - 1, 2 * old[1] - 1, -1)
    grid = resize(grid, (2 * new[0] - 1, 2 * new[1] - 1))
    return grid.reshape(num_offsets(new), -1).astype(table.dtype)


def _geometric_weights(old: int, new: int) -> np.ndarray:
    """Computes the matrix (new, old) that interpolates `old` offsets at `new` ones, both odd.

    Old offset i lies at 1 + q + ... + q^(i-1). The ratio q places the outermost old offset on the
    outermost new one, between 1.01 and 1.5 as in BEiT's code.
    """
    steps = old // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if math.fsum(ratio**i for i in range(steps)) > new // 2:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(ratio ** np.arange(steps))
    known = np.concatenate([-distances[::-1], [0.0], distances])
    wanted = np.arange(new) - new // 2
    return np.stack([np.interp(wanted, known, row) for row in np.eye(old)], 1).astype(np.float32)
