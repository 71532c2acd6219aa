"""Masks of the annotations of augmented images, on the grid of a batch."""

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32

from vit_jax.data.augment.boxed import BoxedImage
from vit_jax.data.boxed_examples import Part
from vit_jax.data.masks import decode_mask, fill_window, place_mask
from vit_jax.errors import UserError

Cells = Bool[np.ndarray, "rows columns"]


@dataclasses.dataclass(frozen=True)
class PlacedMasks:
    """Masks of the annotations of an augmented image, decoded one at a time.

    Attributes:
        image: the augmented image.
        parts: examples that it was made of.
        sizes: height and width of the image of each of them, px.
        input_size: height and width of the model's input, px.
        grid: numbers of rows and columns of a mask, which cover the model's input.
    """

    image: BoxedImage
    parts: Sequence[Part]
    sizes: Sequence[tuple[int, int]]
    input_size: tuple[int, int]
    grid: tuple[int, int]

    def mask(self, row: int) -> Cells | None:
        """Draws the visible part of a mask.

        Args:
            row: annotation, counted through those of all parts.

        Returns:
            The mask, which may be empty; None where the annotation has none.

        Raises:
            UserError: the mask cannot be decoded.
        """
        ends = list(itertools.accumulate(len(part.names) for part in self.parts))
        number = bisect.bisect_right(ends, row)
        part, own = self.parts[number], row - (ends[number] - len(self.parts[number].names))
        if part.masks is None:
            raise UserError(f"{part.key} has no masks")
        try:
            mask = decode_mask(part.masks[own], *self.sizes[number])
        except UserError as error:
            raise type(error)(f"{part.key}, {part.names[own]}: {error}") from error
        if mask is None:
            return None
        return place_mask(mask, *self._place(number), self.grid)

    def attach(self, image: BoxedImage, left_out: collections.Counter[str]) -> BoxedImage:
        """Adds masks to boxes, and leaves out those without any visible cell.

        Args:
            image: some of the boxes of the augmented image.
            left_out: counts of what is left out, by reason.
        """
        found = [self.mask(row) for row in image.rows.tolist()]
        left_out["without a mask"] += (absent := sum(mask is None for mask in found))
        seen = {i: mask for i, mask in enumerate(found) if mask is not None and mask.any()}
        left_out["masks without a cell"] += len(found) - len(seen) - absent
        masks = np.reshape(list(seen.values()), (-1, *self.grid)).astype(np.bool_)
        kept = image.select(np.array(list(seen), np.int64))
        return dataclasses.replace(kept, masks=masks)

    def by_name(self, left_out: collections.Counter[str]) -> dict[str, Cells]:
        """Joins the masks of all objects of each name, also of those whose box was left out.

        Args:
            left_out: counts of what is left out, by reason.

        Returns:
            Mask of each name; not of names with an object without a mask, or without a visible
            cell.
        """
        found: dict[str, list[Cells | None]] = {}
        for row, name in enumerate(name for part in self.parts for name in part.names):
            found.setdefault(name, []).append(self.mask(row))
        joined = {}
        for name, masks in found.items():
            known = [mask for mask in masks if mask is not None]
            left_out["without a mask"] += len(masks) - len(known)
            if len(known) == len(masks) and np.any(known):
                joined[name] = np.any(known, axis=0)
        return joined

    def valid(self) -> Cells:
        """Cells that show an image, and of which is said what they show."""
        found = np.zeros(self.grid, np.bool_)
        for number, part in enumerate(self.parts):
            frame, window = self._place(number)
            shown = fill_window(window, self.grid)
            if part.ignored is not None:
                shown &= ~place_mask(part.ignored, frame, window, self.grid)
            found |= shown
        return found

    def _place(self, number: int) -> tuple[Float32[np.ndarray, "4"], Float32[np.ndarray, "4"]]:
        """Frame and window of a part, in cells."""
        assert self.image.filled is not None  # after the augmentation
        sides = zip(self.image.filled, self.input_size, self.grid, strict=True)
        down, across = (filled / side * cells for filled, side, cells in sides)
        scale = np.array([across, down] * 2, np.float32)
        return self.image.frames[number] * scale, self.image.windows[number] * scale
