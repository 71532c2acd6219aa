"""Runs a detector over images or their tiles, and converts its boxes to pixels."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.images import read_image
from vit_jax.data.sources.listing import LeftOut
from vit_jax.detection.finder import Find
from vit_jax.detection.images import Images, Window, tile
from vit_jax.detection.selection import Boxes, join
from vit_jax.errors import UserError
from vit_jax.evaluators.batching import padded_batches
from vit_jax.pretrained.model import PretrainedModel

Pixels = UInt8[np.ndarray, "_ _ _"]
# Index, height and width of an image, and its boxes.
Result = tuple[int, int, int, Boxes]


@dataclasses.dataclass(frozen=True)
class Search:
    """A detector and what it looks for.

    Attributes:
        model: detector.
        find: computes the boxes of a batch.
        batch_size: images or tiles per batch.
        tile_size: side of the tiles, px; 0 for whole images.
        tile_overlap: smallest fraction of its side that a tile shares with the next one.
    """

    model: PretrainedModel
    find: Find
    batch_size: int
    tile_size: int
    tile_overlap: float

    def run(self, listed: Images) -> Iterator[Result]:
        """Yields the boxes of each image that can be read, in the order of the images.

        Args:
            listed: images. Those of a folder that cannot be read are left out, counted and logged.

        Raises:
            UserError: an image that is not of a folder, or all images, cannot be read.
        """
        left_out = LeftOut()
        each = self._tiled if self.tile_size else self._whole
        yield from each(listed, left_out)
        left_out.log(listed.folder)
        if sum(count for count, _ in left_out.counts.values()) == len(listed.sources):
            raise UserError(f"{listed.folder}: none of {len(listed.sources)} images can be read")

    def _whole(self, listed: Images, left_out: LeftOut) -> Iterator[Result]:
        """Batches of images."""
        inputs = self.model.spec.inputs
        broken = np.zeros(inputs.packed_size, np.uint8), np.zeros(2, np.int64)

        def read(row: int) -> tuple[np.ndarray, np.ndarray]:
            pixels = self._read(listed, row)
            if pixels is None:
                return broken
            return inputs.pack(inputs(pixels)), np.asarray(pixels.shape[:2])

        for row, ((height, width), boxes) in enumerate(self._batches(read, len(listed.sources))):
            if height:
                yield row, height, width, self._in_pixels(boxes, (0, 0, height, width))
            else:
                left_out.add("that cannot be read", listed.keys[row])

    def _tiled(self, listed: Images, left_out: LeftOut) -> Iterator[Result]:
        """Batches of the tiles of one image after the other."""
        inputs = self.model.spec.inputs
        for row, key in enumerate(listed.keys):
            pixels = self._read(listed, row)
            if pixels is None:
                left_out.add("that cannot be read", key)
                continue
            height, width = pixels.shape[:2]
            windows = tile(height, width, self.tile_size, self.tile_overlap)

            def read(
                index: int, pixels: Pixels = pixels, windows: list[Window] = windows
            ) -> tuple[np.ndarray, np.ndarray]:
                top, left, rows, columns = windows[index]
                part = inputs(np.ascontiguousarray(pixels[top : top + rows, left : left + columns]))
                return inputs.pack(part), np.asarray((rows, columns))

            found = [boxes for _, boxes in self._batches(read, len(windows))]
            parts = [self._in_pixels(*pair) for pair in zip(found, windows, strict=True)]
            yield row, height, width, join(parts)

    def _read(self, listed: Images, row: int) -> Pixels | None:
        """Reads an image; None for one of a folder that cannot be read."""
        try:
            source, where = listed.sources[row], listed.name(row)
            return read_image(source, where, max_pixels=self.model.max_image_pixels)
        except UserError:
            if listed.folder:
                return None
            raise

    def _batches(
        self, read: Callable[[int], tuple[np.ndarray, np.ndarray]], count: int
    ) -> Iterator[tuple[tuple[int, int], Boxes]]:
        """Size, and boxes relative to the input, of each row.

        Args:
            read: returns the packed image of a row, and its height and width.
            count: number of rows.
        """
        size, done = min(self.batch_size, count), 0
        for batch in padded_batches(
            lambda row: dict(zip(("image", "size"), read(row), strict=True)),
            start=0,
            stop=count,
            batch_size=size,
            part=range(size),
        ):
            outputs = self.find(batch["image"], batch["size"])
            for shape, *found in list(zip(batch["size"], *outputs, strict=True))[: count - done]:
                yield (int(shape[0]), int(shape[1])), Boxes(*found)
            done += size

    def _in_pixels(self, found: Boxes, window: Window) -> Boxes:
        """Boxes relative to the input in pixels of the image of which a window was the input."""
        top, left, height, width = window
        rows, columns = self.model.spec.inputs.extent(height, width)
        boxes = found.boxes * np.array([columns, rows] * 2, np.float32)
        return dataclasses.replace(found, boxes=boxes + np.array([left, top] * 2, np.float32))
