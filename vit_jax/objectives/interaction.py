"""Simulated clicks and boxes of a user (Kirillov et al. 2023, SAM, appendix A).

A cell is one element of a mask. Positions are in cells: the first one is between 0 and 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def pick_cells(
    masks: Bool[Array, "*shape height width"], noise: Float[Array, "*shape"]
) -> Int[Array, "*shape 2"]:
    """Picks a cell of each mask, all of them with the same probability.

    Args:
        masks: cells to choose from; of an empty mask the first cell is picked.
        noise: uniform in [0, 1), which selects the cell: 0 is the first one, row by row.

    Returns:
        Column and row of each cell.
    """
    counts = jnp.sum(masks, axis=-1)
    ends = jnp.cumsum(counts, axis=-1)
    total = ends[..., -1]
    # Rounding could reach the count.
    rank = jnp.minimum(jnp.floor(noise * total).astype(jnp.int32), total - 1)[..., None]
    row = jnp.sum(ends <= rank, axis=-1, keepdims=True)
    before = jnp.take_along_axis(ends - counts, row, axis=-1)
    cells = jnp.take_along_axis(masks, row[..., None], axis=-2)[..., 0, :]
    column = jnp.sum(jnp.cumsum(cells, axis=-1) <= rank - before, axis=-1, keepdims=True)
    return jnp.concatenate([column, row], axis=-1)


def corrective_points(
    found: Bool[Array, "*shape height width"],
    targets: Bool[Array, "*shape height width"],
    valid: Bool[Array, "*shape height width"],
    noise: Float[Array, "*shape"],
) -> tuple[Int[Array, "*shape 2"], Bool[Array, "*shape"]]:
    """Picks a point of the region that a prediction gets wrong.

    Args:
        found: predicted masks.
        targets: right masks.
        valid: cells that count.
        noise: uniform in [0, 1), see `pick_cells`.

    Returns:
        Column and row of a cell, uniform over the error region, or over all valid cells where there
        is no error; and whether it belongs to the right mask.
    """
    wrong = (found != targets) & valid
    exists = jnp.any(wrong, axis=(-2, -1), keepdims=True)
    cells = pick_cells(jnp.where(exists, wrong, valid), noise)
    return cells, values_at(targets, cells)


def values_at(
    masks: Bool[Array, "*shape height width"], cells: Int[Array, "*shape 2"]
) -> Bool[Array, "*shape"]:
    """Value of one cell of each mask.

    Args:
        masks: masks.
        cells: column and row.
    """
    row = jnp.take_along_axis(masks, cells[..., 1][..., None, None], axis=-2)
    return jnp.take_along_axis(row[..., 0, :], cells[..., :1], axis=-1)[..., 0]


def boxes_around(
    masks: Bool[Array, "*shape height width"],
) -> Float[Array, "*shape 4"]:
    """Smallest boxes around masks.

    Args:
        masks: masks.

    Returns:
        x0, y0, x1, y1 in cells, float32; zeros for an empty mask.
    """
    ends = []
    for axis in (-2, -1):
        filled = jnp.any(masks, axis=axis)
        length = filled.shape[-1]
        first = jnp.argmax(filled, axis=-1)
        last = length - jnp.argmax(filled[..., ::-1], axis=-1)
        exists = jnp.any(filled, axis=-1)
        ends.append((jnp.where(exists, first, 0), jnp.where(exists, last, 0)))
    (x0, x1), (y0, y1) = ends
    return jnp.stack([x0, y0, x1, y1], axis=-1).astype(jnp.float32)


def noisy_boxes(
    boxes: Float[Array, "*shape 4"],
    noise: Float[Array, "*shape 4"],
    *,
    scale: float,
    most: float,
    size: tuple[int, int],
) -> Float[Array, "*shape 4"]:
    """Moves each corner of boxes by noise, as a user who draws them.

    Args:
        boxes: x0, y0, x1, y1.
        noise: standard normal noise.
        scale: standard deviation of the shift, as a fraction of the side.
        most: largest shift, in the unit of the boxes.
        size: height and width of the image; boxes stay inside.
    """
    sides = jnp.tile(boxes[..., 2:] - boxes[..., :2], 2)
    shift = jnp.clip(noise * scale * sides, -most, most)
    height, width = size
    return jnp.clip(boxes + shift, 0, jnp.asarray([width, height] * 2, boxes.dtype))
