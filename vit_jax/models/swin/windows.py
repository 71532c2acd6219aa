"""Windows of a feature map and the relative positions within one (Liu et al. 2021, "Swin").

All that depends on sizes alone is computed in NumPy while the model is traced.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError, lookup

Size = tuple[int, int]

# Added to the logits of two positions that only the cyclic shift made neighbours. The original
# value: it must stay as it is, since what is left of such a pair after the softmax is not zero.
MASKED = -100.0


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a feature map is cut into windows; plain integers, rows before columns.

    Attributes:
        map_size: of the feature map (H, W).
        size: of a window (h, w).
        shift: rows and columns by which the map is rolled up and to the left before it is cut.
    """

    map_size: Size
    size: Size
    shift: Size

    @property
    def counts(self) -> Size:
        """Windows down and across; those at the lower and right border may be padded."""
        return (
            -(-self.map_size[0] // self.size[0]),
            -(-self.map_size[1] // self.size[1]),
        )

    def partition(self, x: jax.Array) -> jax.Array:
        """Cuts a map (B, H, W, C) into windows (B, windows, h w, C).

        The map is padded with zeros after the roll, as in timm; other codebases pad before it.
        """
        x = jnp.roll(x, (-self.shift[0], -self.shift[1]), axis=(1, 2))
        (rows, columns), (height, width) = self.counts, self.size
        bottom, right = rows * height - x.shape[1], columns * width - x.shape[2]
        x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
        x = x.reshape(x.shape[0], rows, height, columns, width, x.shape[-1])
        return x.swapaxes(2, 3).reshape(x.shape[0], rows * columns, height * width, x.shape[-1])

    def merge(self, x: jax.Array) -> jax.Array:
        """Undoes `partition`: (B, windows, h w, C) to (B, H, W, C)."""
        (rows, columns), (height, width) = self.counts, self.size
        x = x.reshape(x.shape[0], rows, columns, height, width, x.shape[-1]).swapaxes(2, 3)
        x = x.reshape(x.shape[0], rows * height, columns * width, x.shape[-1])
        return jnp.roll(x[:, : self.map_size[0], : self.map_size[1]], self.shift, axis=(1, 2))

    def mask(self) -> np.ndarray | None:
        """What to add to the logits: float32 (windows, h w, h w); None for windows not shifted.

        The regions are those of the padded map, as in timm: where it is padded, rows that came
        from the upper border are not all kept apart from the others, and padding is attended to.
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
    """Number of the region of each row of a map: all but the last window, and its two parts."""
    regions = np.zeros(length, np.int32)
    if shift:
        regions[-window:-shift] = 1
        regions[-shift:] = 2
    return regions


def relative_index(size: Size) -> np.ndarray:
    """Row of the bias table for each pair of positions in a window (h, w): (h w, h w).

    The table has a row for each difference (query minus key) of rows, then of columns, from
    -(h - 1) to h - 1 and from -(w - 1) to w - 1.
    """
    rows, columns = (c.reshape(-1) for c in np.indices(size))
    down = rows[:, None] - rows + size[0] - 1
    right = columns[:, None] - columns + size[1] - 1
    return down * (2 * size[1] - 1) + right


def num_offsets(size: Size) -> int:
    """Rows of the bias table of a window (h, w)."""
    return (2 * size[0] - 1) * (2 * size[1] - 1)


def _bicubic(table: jax.Array, new: Size) -> jax.Array:
    return jax.image.resize(table, (*new, table.shape[-1]), "bicubic", antialias=True)


def _geometric(table: jax.Array, new: Size) -> jax.Array:
    down, right = (_geometric_weights(*n) for n in zip(table.shape[:2], new, strict=True))
    return jnp.einsum("ai,bj,ijh->abh", down, right, table, precision="highest")


# "bicubic": the table is an image that is stretched. "geometric" (BEiT, timm): the known offsets
# are spread in geometric progression over the new ones, with linear interpolation between; offsets
# near 0 keep their meaning, and a smaller window gets close to the middle of the table.
RESIZE_METHODS = {"bicubic": _bicubic, "geometric": _geometric}


def resize_bias_table(table: jax.Array, old: Size, new: Size, method: str) -> jax.Array:
    """Makes a relative-position bias table fit another window, in float32.

    Args:
        table: ((2 old_h - 1)(2 old_w - 1), heads).
        old: window that the table was made for, (rows, columns).
        new: window wanted.
        method: a key of `RESIZE_METHODS`.

    Returns:
        ((2 new_h - 1)(2 new_w - 1), heads), type of `table`.
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
    """Matrix (new, old) from the values at `old` offsets to those at `new` ones, both odd.

    Old offset i lies at 1 + q + ... + q^(i-1), with q such that the outermost falls on the
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
