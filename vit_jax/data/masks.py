"""Masks of objects: from the forms in which files have them to arrays, and onto another grid.

A mask is stored as one of

- polygons, a list of lists x, y, x, y, ... in pixels of the image;
- run lengths, {"size": [height, width], "counts": list or COCO's text};
- an image file of one channel (`images.EncodedImage`), in which other values than 0 are the object;
- bool (height, width).

It is decoded when a batch needs it.
"""

import importlib.util
import itertools
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32

from vit_jax.data.images import MAX_PIXELS, EncodedImage, read_levels
from vit_jax.errors import MissingPackageError, UserError

Mask = Bool[np.ndarray, "height width"]

_FAR = 10.0  # times the image's longer side, by which a polygon may leave the image
_MOST_SAMPLES = 8  # samples per cell along an axis
_HALF = 0.5 - 1e-4  # fraction of a cell from which it belongs to a mask, with room for rounding


def decode_mask(stored: Any, height: int, width: int) -> Mask | None:
    """Decodes a mask.

    Args:
        stored: mask in one of the forms of the module's docstring. Polygons of fewer than three
            points have no area and are left out.
        height: height of the image, px.
        width: width of the image, px.

    Returns:
        The mask, which may be empty; None where there is none.

    Raises:
        UserError: another form or size, or numbers that are no mask.
        MissingPackageError: polygons or run lengths without the package faster-coco-eval.
    """
    if stored is None:
        return None
    if isinstance(stored, EncodedImage):
        return _of_size(read_levels(stored) != 0, height, width)
    if isinstance(stored, np.ndarray) and stored.dtype == np.bool_:
        return _of_size(stored, height, width)
    if isinstance(stored, dict):
        if list(stored.get("size", ())) != [height, width]:
            raise UserError(
                f"run lengths have the size {stored.get('size')}, the image {[height, width]}"
            )
        return _decode_coco({"size": [height, width], "counts": stored.get("counts")})
    if not isinstance(stored, list):
        raise UserError(
            "expected polygons, run lengths with size and counts, an image file or a bool array as "
            f"a mask; found {type(stored).__name__}"
        )
    polygons = [_polygon(each, _FAR * max(height, width)) for each in stored]
    polygons = [each for each in polygons if len(each) >= 6]
    return _decode_coco(polygons, height, width) if polygons else None


def _polygon(values: Any, farthest: float) -> list[float]:
    """Checks the numbers of a polygon."""
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) % 2:
        raise UserError("expected polygons as lists of x, y, x, y, ... in pixels")
    if not all(abs(value) <= farthest for value in values):
        raise UserError("a polygon has points far outside the image, infinite ones or NaN")
    return [float(value) for value in values]


def encode_mask(mask: Mask) -> dict[str, Any]:
    """Encodes a mask as COCO's run lengths: `size`, and `counts` as bytes.

    Args:
        mask: a mask.

    Raises:
        MissingPackageError: the package faster-coco-eval is not installed.
    """
    return _coco_masks().encode(np.asfortranarray(mask[..., None], np.uint8))[0]


def _coco_masks() -> Any:
    """The module of faster-coco-eval."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise MissingPackageError(
            "masks as polygons or run lengths need the package faster-coco-eval: "
            "pip install 'vit_jax[detection]'"
        )
    from faster_coco_eval.core import mask

    return mask


def _decode_coco(stored: Any, height: int = 0, width: int = 0) -> Mask:
    """Decodes polygons or run lengths with COCO's rules."""
    mask = _coco_masks()
    try:
        if isinstance(stored, dict):
            height, width = stored["size"]
        return mask.decode(mask.segmToRle(stored, width, height)).astype(np.bool_)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise UserError(f"a mask cannot be decoded: {error}") from error


def _of_size(mask: Mask, height: int, width: int) -> Mask:
    if mask.shape != (height, width):
        raise UserError(
            f"a mask has {mask.shape[-1]} x {mask.shape[0]} px, the image {width} x {height} px"
        )
    return mask


def box_of(stored: Any) -> list[float] | None:
    """Computes the smallest box around a mask without its image.

    Args:
        stored: see `decode_mask`.

    Returns:
        x0, y0, x1, y1, px; None for an empty mask.

    Raises:
        UserError: see `decode_mask`.
    """
    if isinstance(stored, list):
        polygons = [_polygon(each, MAX_PIXELS) for each in stored]
        points = np.array(list(itertools.chain(*polygons))).reshape(-1, 2)
        return [*points.min(axis=0), *points.max(axis=0)] if len(points) else None
    if isinstance(stored, EncodedImage):
        mask: Mask | None = read_levels(stored) != 0
    else:
        size: Any = stored.get("size") if isinstance(stored, dict) else np.shape(stored)
        sides = isinstance(size, list | tuple) and all(type(n) is int and n > 0 for n in size)
        if not sides or len(size) != 2 or size[0] * size[1] > MAX_PIXELS:
            raise UserError(f"run lengths have the size {size!r:.40}, expected height and width")
        mask = decode_mask(stored, *size)
    return boxes_of(mask[None])[0].tolist() if mask is not None and mask.any() else None


def boxes_of(
    masks: Bool[np.ndarray, "masks height width"],
) -> Float32[np.ndarray, "masks 4"]:
    """Smallest boxes around masks, x0, y0, x1, y1, px.

    Args:
        masks: masks, none of them empty.
    """
    ends = []
    for axis in (1, 2):  # along the columns, then along the rows
        filled = np.any(masks, axis=axis)
        length = filled.shape[1]
        ends.append((filled.argmax(axis=1), length - filled[:, ::-1].argmax(axis=1)))
    (x0, x1), (y0, y1) = ends
    return np.stack([x0, y0, x1, y1], axis=1).astype(np.float32)


def place_mask(
    mask: Mask,
    frame: Float[np.ndarray, "4"],
    window: Float[np.ndarray, "4"],
    size: tuple[int, int],
) -> Bool[np.ndarray, "rows columns"]:
    """Draws a mask on a grid of cells.

    A cell belongs to the mask if at least half of it does, by up to 8 x 8 samples.

    Args:
        mask: mask of an image.
        frame: corners of the image on the grid, x0, y0, x1, y1 in cells; a mirrored image has
            x0 > x1.
        window: part of the grid that shows the image, x0, y0, x1, y1 in cells.
        size: numbers of rows and columns of the grid.
    """
    columns, across = _samples(mask.shape[1], frame[[0, 2]], window[[0, 2]], size[1])
    rows, down = _samples(mask.shape[0], frame[[1, 3]], window[[1, 3]], size[0])
    samples = np.zeros((len(rows), len(columns)), np.float32)
    shown = np.ix_(rows >= 0, columns >= 0)
    samples[shown] = mask[rows[rows >= 0]][:, columns[columns >= 0]]
    if down == across == 1:
        return samples > 0
    return cv2.resize(samples, size[::-1], interpolation=cv2.INTER_AREA) >= _HALF


def _samples(
    length: int, frame: Float[np.ndarray, "2"], window: Float[np.ndarray, "2"], cells: int
) -> tuple[np.ndarray, int]:
    """Pixel of each sample along an axis, -1 outside of the window, and samples per cell."""
    start, end = float(frame[0]), float(frame[1])
    per_cell = min(_MOST_SAMPLES, max(1, math.ceil(length / abs(end - start) - 1e-3)))
    at = (np.arange(cells * per_cell) + 0.5) / per_cell
    pixel = np.floor((at - start) * (length / (end - start))).astype(np.int64)
    shown = (pixel >= 0) & (pixel < length) & (at > window[0]) & (at < window[1])
    return np.where(shown, pixel, -1), per_cell


def fill_window(
    window: Float32[np.ndarray, "4"], size: tuple[int, int]
) -> Bool[np.ndarray, "rows columns"]:
    """Cells of a grid whose centre is inside a window. The arguments are those of `place_mask`."""
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    inside = (x > window[0]) & (x < window[2]), (y > window[1]) & (y < window[3])
    return inside[1][:, None] & inside[0][None, :]


def paint_labels(
    masks: Sequence[Mask], labels: Sequence[int], height: int, width: int, background: int
) -> np.ndarray:
    """Joins masks to one label per pixel; smaller masks cover larger ones.

    Args:
        masks: masks of an image.
        labels: label of each mask.
        height: height of the image, px.
        width: width of the image, px.
        background: label of pixels without a mask.

    Returns:
        int32 (height, width).
    """
    painted = np.full((height, width), background, np.int32)
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        painted[masks[i]] = labels[i]
    return painted
