"""Boxes of images as arrays of one shape, for models that classify regions."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32

# Index of an image, and first and end of some of its boxes.
Part = tuple[int, int, int]


def in_parts(counts: Sequence[int], size: int) -> list[Part]:
    """Divides the boxes of each image into parts of a limited size.

    Args:
        counts: number of boxes of each image.
        size: largest number of boxes of a part.

    Returns:
        The parts, in the order of the images and their boxes.
    """
    return [
        (image, start, min(start + size, count))
        for image, count in enumerate(counts)
        for start in range(0, count, size)
    ]


def join_parts(
    parts: Sequence[Part], outputs: Iterable[Sequence[np.ndarray]]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Joins what a model computes for the parts of each image.

    Args:
        parts: parts, see `in_parts`.
        outputs: arrays of each part, whose rows are its boxes, then padding. Those after the last
            part are not read.

    Yields:
        Index of an image, and the arrays of all its boxes.
    """
    for image, group in itertools.groupby(
        zip(parts, outputs, strict=False), key=lambda pair: pair[0][0]
    ):
        rows = [[x[: stop - start] for x in arrays] for (_, start, stop), arrays in group]
        yield image, [np.concatenate(each) for each in zip(*rows, strict=True)]


def relative_boxes(
    boxes: Float[np.ndarray, "n 4"], extent: tuple[int, int], count: int
) -> Float32[np.ndarray, "count 4"]:
    """Converts boxes to the units of a model's input, and pads them with zeros.

    Args:
        boxes: x0, y0, x1, y1 in pixels of the image.
        extent: height and width that the input shows, px, see `ImageInputs.extent`.
        count: number of rows.

    Returns:
        Center x, center y, width, height as fractions of the input.
    """
    height, width = extent
    relative = np.asarray(boxes, np.float32) / np.array([width, height] * 2, np.float32)
    low, high = np.split(relative, 2, axis=1)
    padded = np.zeros((count, 4), np.float32)
    padded[: len(boxes)] = np.concatenate([(low + high) / 2, high - low], axis=1)
    return padded
