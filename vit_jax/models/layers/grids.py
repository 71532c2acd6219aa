"""Resizing of tables of positions, by the rules of the libraries that use them.

On a 2-D grid:

| rule | formula | used by |
| --- | --- | --- |
| `bicubic_antialias` | cubic, a = -0.5, antialias | timm, open_clip, DINOv2 with registers |
| `bilinear_antialias` | linear, antialias | SigLIP 2 NaFlex in transformers and timm; FlexiViT |
| `bicubic` | cubic, a = -0.75, no antialias | transformers; authors of MAE and Swin |
| `bicubic_offset` | the same, scaled by (new + 0.1) / old | authors of DINOv2, without registers |
| `bilinear` | linear between pixel centres, no antialias | timm, reading `.npz` of Google |
| `bilinear_corners` | linear between the corners (`scipy.ndimage.zoom`, order 1) | big_vision |

The rules differ: weights that were trained with one lose accuracy with another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax.errors import lookup
from vit_jax.models.sizes import Size

DEFAULT_RULE = "bicubic_antialias"
AnyArray = jax.Array | np.ndarray


def _interpolation(old: int, at: np.ndarray, offsets: range, kernel: Callable) -> np.ndarray:
    """Matrix (new, old) that interpolates at positions; neighbours outside are the border's."""
    first = np.floor(at).astype(int)
    matrix = np.zeros((len(at), old))
    for offset in offsets:
        neighbours = np.clip(first + offset, 0, old - 1)
        np.add.at(matrix, (np.arange(len(at)), neighbours), kernel(np.abs(at - first - offset)))
    return matrix


def _cubic(distance: AnyArray, a: float = -0.75) -> AnyArray:
    """Cubic convolution (Keys 1981) with torch's parameter, at distances up to 2."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return near * (distance <= 1) + far * (distance > 1)


def _centres(new: int, scale: float) -> np.ndarray:
    """Positions of the new pixels' centres among the old ones."""
    return (np.arange(new) + 0.5) / scale - 0.5


def _bicubic(old: int, new: int, offset: float = 0.0) -> np.ndarray:
    at = _centres(new, (new + offset) / old)
    return _interpolation(old, at, range(-1, 3), _cubic)


def _bilinear(old: int, new: int) -> np.ndarray:
    return _interpolation(old, _centres(new, new / old), range(2), lambda d: 1 - d)


def _bilinear_corners(old: int, new: int) -> np.ndarray:
    return _interpolation(old, np.linspace(0, old - 1, new), range(2), lambda d: 1 - d)


# Rule -> matrix (new, old) of one axis.
MATRICES: dict[str, Callable[[int, int], np.ndarray]] = {
    "bicubic": _bicubic,
    "bicubic_offset": lambda old, new: _bicubic(old, new, 0.1),
    "bilinear": _bilinear,
    "bilinear_corners": _bilinear_corners,
}
# Rule that averages where it makes a table smaller -> method of `jax.image.resize`, and weight of a
# value by its distance.
ANTIALIASED: dict[str, tuple[str, Callable[[jax.Array], AnyArray]]] = {
    DEFAULT_RULE: ("bicubic", lambda d: _cubic(d, -0.5) * (d < 2)),
    "bilinear_antialias": ("linear", lambda d: (1 - d) * (d < 1)),
}
RESIZE_RULES = (*ANTIALIASED, *MATRICES)


def resize_grid(
    table: Float[Array, "rows columns width"], new: Size, rule: str
) -> Float[Array, "new_rows new_columns width"]:
    """Resizes a table in float32; one of the right size is returned as it is.

    Args:
        table: values on a grid.
        new: rows and columns of the result.
        rule: name in `RESIZE_RULES`.

    Raises:
        UserError: an unknown rule.
    """
    if table.shape[:2] == new:
        return table
    table = table.astype(jnp.float32)
    if rule in ANTIALIASED:
        method, _ = ANTIALIASED[rule]
        return jax.image.resize(table, (*new, table.shape[-1]), method, antialias=True)
    matrix = lookup(MATRICES, rule, "rule to resize positions")
    down, right = (
        matrix(*lengths).astype(np.float32) for lengths in zip(table.shape[:2], new, strict=True)
    )
    return jnp.einsum("ai,bj,ijd->abd", down, right, table, precision="highest")


def resize_to_grids(
    table: Float[Array, "rows columns width"], grids: Int[Array, "batch 2"], length: int, rule: str
) -> Float[Array, "batch {length} width"]:
    """Resizes a table to a grid per image, which is not known before the program runs, in float32.

    Args:
        table: values on a grid.
        grids: rows and columns of the result for each image, at least 1 each.
        length: number of values per image with padding, at least rows times columns.
        rule: name in `ANTIALIASED`.

    Returns:
        Values by rows. Those of the padding repeat the first one.

    Raises:
        UserError: another rule.
    """
    _, kernel = lookup(ANTIALIASED, rule, "rule to resize positions of each image")
    rows, columns = grids[:, :1], grids[:, 1:]
    index = jnp.arange(length)
    index = jnp.where(index < rows * columns, index, 0)
    down = _antialiased(index // columns, table.shape[0], rows, kernel)
    right = _antialiased(index % columns, table.shape[1], columns, kernel)
    weights = (down[..., :, None] * right[..., None, :]).reshape(len(grids) * length, -1)
    old = table.astype(jnp.float32).reshape(-1, table.shape[-1])
    return jnp.dot(weights, old, precision="highest").reshape(len(grids), length, -1)


def _antialiased(index: jax.Array, old: int, new: jax.Array, kernel: Callable) -> jax.Array:
    """Weights (..., old) of the old values, for values `index` of a line of `new`."""
    scale = old / new
    at = (index + 0.5) * scale - 0.5
    distance = jnp.abs(jnp.arange(old) - at[..., None]) / jnp.maximum(scale, 1)[..., None]
    weights = kernel(distance)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


# Rules for positions of texts; "" refuses another length.
TEXT_RULES = ("", "cut", "linear")


def can_fit_text(old: int, new: int, rule: str) -> bool:
    """Returns whether positions of a text can be fitted to another length.

    Args:
        old: number of positions.
        new: number of positions of the result.
        rule: name in `TEXT_RULES`.
    """
    return old == new or rule == "linear" or (rule == "cut" and new < old)


def fit_text_positions(
    table: Float[Array, "old_length width"], length: int, rule: str
) -> Float[Array, "length width"]:
    """Fits positions of a text to another length, see `can_fit_text`.

    Args:
        table: positions.
        length: number of positions of the result.
        rule: "cut" keeps the first ones; "linear" interpolates between the centres, as open_clip.
    """
    return resize_line(table, length) if rule == "linear" else table[:length]


def resize_line(
    table: Float[Array, "old_length width"], length: int
) -> Float[Array, "length width"]:
    """Interpolates a table linearly between the centres of its rows, in float32.

    Args:
        table: values on a line; a table of the right length is returned as it is.
        length: number of rows of the result.
    """
    if len(table) == length:
        return table
    matrix = _bilinear(len(table), length).astype(np.float32)
    return jnp.dot(matrix, table.astype(jnp.float32), precision="highest").astype(table.dtype)
