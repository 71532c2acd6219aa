"""Prompts of a user, in pixels of the image, and their conversion to inputs of a model."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.sam.prompts import join_prompts
from vit_jax.segmentation.downscaling import downscale


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts as a model reads them.

    Attributes:
        points: x and y in pixels of the input (P, N, 2), the corners of boxes included.
        labels: label of each point (P, N), see `models.sam.prompts`.
        masks: logits of a mask of each prompt (P, h, w); None for none.
        ambiguous: whether each prompt is a single point.
    """

    points: Float32[np.ndarray, "prompts points 2"]
    labels: Int32[np.ndarray, "prompts points"]
    masks: Float32[np.ndarray, "prompts rows columns"] | None = None
    ambiguous: bool = False

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: slice) -> "Prompts":
        masks = None if self.masks is None else self.masks[rows]
        return dataclasses.replace(
            self, points=self.points[rows], labels=self.labels[rows], masks=masks
        )


def make_prompts(
    points: Any,
    labels: Any,
    boxes: Any,
    masks: Any,
    *,
    size: tuple[int, int],
    inputs: ImageInputs,
    mask_size: tuple[int, int],
) -> Prompts:
    """Checks prompts and converts them; see `segment.segment`.

    Args:
        points: x and y (P, 2) or (P, N, 2); None for none.
        labels: 1 or 0 for each point; None for 1.
        boxes: x0, y0, x1, y1 (P, 4); None for none.
        masks: bool (P, H, W) or logits (P, h, w); None for none.
        size: height and width of the image, px.
        inputs: preprocessing of the model.
        mask_size: height and width of the logits of a mask.

    Raises:
        UserError: no prompt, one of another shape, outside of the image or empty, or different
            numbers of prompts.
    """
    if labels is not None and points is None:
        raise UserError("labels belong to points: expected points; found labels alone")
    given: dict[str, np.ndarray] = {}
    if points is not None:
        given["points"], marks = _points(points, labels, size)
    if boxes is not None:
        given["boxes"] = _boxes(boxes, size)
    if masks is not None:
        given["masks"] = _masks(masks, size, inputs, mask_size)
    if not given:
        raise UserError("no prompt: expected points, boxes or masks, or names with a detector")
    counts = {name: len(values) for name, values in given.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise UserError(
            "expected the same number of points, boxes and masks, at least one; found "
            + ", ".join(f"{count} {name}" for name, count in counts.items())
        )
    ambiguous = given.keys() == {"points"} and given["points"].shape[1] == 1
    if given.keys() == {"masks"}:
        count = counts["masks"]
        empty = np.zeros((count, 0, 2), np.float32), np.zeros((count, 0), np.int32)
        return Prompts(*empty, given["masks"])
    scaled = inputs.scaled_size(*size)
    factor = np.array([scaled[1] / size[1], scaled[0] / size[0]])
    parts: list[Any] = [None, None, None]
    if "points" in given:
        parts[0] = jnp.asarray(given["points"] * factor, jnp.float32)[None]
        parts[1] = jnp.asarray(marks)[None]
    if "boxes" in given:
        parts[2] = jnp.asarray(given["boxes"] * np.tile(factor, 2), jnp.float32)[None]
    joined, kinds = (np.asarray(each[0]) for each in join_prompts(*parts))
    return Prompts(joined, kinds.astype(np.int32), given.get("masks"), ambiguous)


def _points(
    points: Any, labels: Any, size: tuple[int, int]
) -> tuple[np.ndarray, Int32[np.ndarray, "prompts points"]]:
    """Points (P, N, 2), float64, and their labels (P, N)."""
    found = _numbers(points, "points")
    if found.ndim == 2:
        found = found[:, None]
    if found.ndim != 3 or found.shape[-1] != 2 or not found.shape[1]:
        raise UserError(
            "points: expected x and y of a point per prompt (P, 2), or of N points per prompt "
            f"(P, N, 2); found the shape {np.shape(points)}"
        )
    _check_inside(found, size, "points")
    marks = np.ones(found.shape[:2]) if labels is None else _numbers(labels, "labels")
    if marks.shape in (found.shape[:1], found.shape[:2]):
        marks = marks.reshape(-1, *marks.shape[1:] or (1,))
    if marks.shape != found.shape[:2] or not np.isin(marks, (0, 1)).all():
        raise UserError(
            f"labels: expected 1 (object) or 0 (background) for each of the points "
            f"{found.shape[:2]}; found {np.asarray(labels).tolist()}"
        )
    return found, marks.astype(np.int32)


def _boxes(boxes: Any, size: tuple[int, int]) -> np.ndarray:
    """Boxes (P, 4), float64."""
    found = _numbers(boxes, "boxes")
    if found.ndim != 2 or found.shape[-1] != 4:
        raise UserError(f"boxes: expected x0, y0, x1, y1 (P, 4); found the shape {found.shape}")
    corners = found.reshape(-1, 2, 2)
    _check_inside(corners, size, "boxes")
    for number, (low, high) in enumerate(corners):
        if not (low < high).all():
            raise UserError(
                f"box {number} is {found[number].tolist()}: expected x0 < x1 and y0 < y1"
            )
    return found


def _masks(
    masks: Any, size: tuple[int, int], inputs: ImageInputs, mask_size: tuple[int, int]
) -> Float32[np.ndarray, "prompts rows columns"]:
    """Logits of masks (P, h, w)."""
    found = np.asarray(masks)
    pixels = found.dtype == bool
    expected = size if pixels else mask_size
    numeric = pixels or np.issubdtype(found.dtype, np.floating)
    if found.ndim != 3 or found.shape[1:] != expected or not numeric:
        raise UserError(
            f"masks: expected bool (P, {size[0]}, {size[1]}) in pixels of the image, or logits "
            f"(P, {mask_size[0]}, {mask_size[1]}) of an earlier result; found {found.dtype} "
            f"{found.shape}"
        )
    if not np.isfinite(found).all():
        raise UserError("masks: expected finite logits")
    for number, mask in enumerate(found):
        if not (mask if pixels else mask > 0).any():
            raise UserError(f"mask {number} is empty: expected at least one pixel of an object")
    if not pixels:
        return found.astype(np.float32)
    small = [downscale(mask, inputs, mask_size) for mask in found]
    return np.array(small, np.float32).reshape(-1, *mask_size)


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: expected an array of numbers; found {values!r}") from error
    if not np.isfinite(found).all():
        raise UserError(f"{name}: expected finite numbers")
    return found


def _check_inside(points: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Refuses coordinates (P, N, 2) outside of an image."""
    height, width = size
    outside = ((points < 0) | (points > (width, height))).any(axis=(1, 2))
    if outside.any():
        number = int(np.flatnonzero(outside)[0])
        raise UserError(
            f"{name}: number {number} is outside of the image of {width} x {height} px (width x "
            f"height); found {points[number].reshape(-1).tolist()}"
        )
