"""Boxes and image files of annotation files, as strangers write them."""

import logging
import math
import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files
from vit_jax.errors import UserError, printable
from vit_jax.paths import is_url

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the image."""

TOLERANCE = 1.0  # px by which a box may leave its image without a word, because files round


def check_box(values: Any) -> str | None:
    """Checks four numbers x0, y0, x1, y1.

    Args:
        values: numbers as they are in the file.

    Returns:
        The reason why they are no box, as a noun phrase; None for a box.
    """
    if not isinstance(values, list | tuple) or len(values) != 4:
        return "boxes that are not four numbers"
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        return "boxes that are not four numbers"
    if not all(map(math.isfinite, values)):
        return "boxes with infinite numbers or NaN"
    if values[2] <= values[0] or values[3] <= values[1]:
        return "boxes without area"
    return None


def clip_box(box: Box, height: int, width: int) -> Box | None:
    """Clips a box to its image.

    Args:
        box: box with an area above 0.
        height: height of the image, px.
        width: width of the image, px.

    Returns:
        The part inside; None where there is none.
    """
    x0, x1 = (min(max(x, 0.0), float(width)) for x in box[0::2])
    y0, y1 = (min(max(y, 0.0), float(height)) for y in box[1::2])
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def overhang(box: Box, height: int, width: int) -> float:
    """Largest distance by which a box leaves its image, px; 0 or less for a box inside."""
    return max(-box[0], -box[1], box[2] - width, box[3] - height)


def box_array(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Boxes as float32 (n, 4), also where there are none."""
    return np.asarray(boxes, np.float32).reshape(-1, 4)


class ImageFiles:
    """Image files of an annotation file, found by their names."""

    def __init__(self, folder: str, annotations: str) -> None:
        """Opens the folder.

        Args:
            folder: folder of the images, local or in a bucket.
            annotations: path of the annotation file, for messages.

        Raises:
            UserError: there is no such folder.
        """
        self._fs, self.folder = files.file_system(folder)
        self._annotations = annotations
        if not files.is_folder(self._fs, self.folder):
            raise UserError(
                f"no folder {folder!r}: name the folder of the images of {annotations}, as "
                "?images=DIR"
            )

    def locate(self, names: Iterable[Sequence[str]]) -> list[str]:
        """Finds images by listing their folders, and logs how many are missing.

        Args:
            names: possible names of each image, relative to the folder, the likeliest first.

        Returns:
            Name of each image: the first one that exists, or the first one.

        Raises:
            UserError: none of the images exists.
        """
        listed: dict[str, set[str]] = {}

        def exists(name: str) -> bool:
            folder, base = posixpath.split(self._path(name))
            if is_url(name):
                return True
            if folder not in listed:
                listed[folder] = self._list(folder)
            return base in listed[folder]

        found, missing = [], []
        for candidates in names:
            name = next(filter(exists, candidates), None)
            found.append(candidates[0] if name is None else name)
            if name is None:
                missing.append(candidates[0])
        if missing and len(missing) == len(found):
            raise UserError(
                f"none of the {len(found):,} images of {self._annotations} is in {self.folder}, as "
                f"{printable(missing[0])!r}: name their folder, as ?images=DIR"
            )
        if missing:
            logger.warning(
                "%s: %d of %d images are not in %s (as %s): they are broken examples",
                self._annotations, len(missing), len(found), self.folder,
                printable(missing[0]),
            )  # fmt: skip
        return found

    def read(self, name: str, key: str) -> EncodedImage:
        """Reads an image.

        Args:
            name: name of the image, relative to the folder.
            key: name of the example, for messages.

        Raises:
            UserError: the image is missing or cannot be read.
        """
        path = self._path(name)
        fs, inner = files.file_system(path) if is_url(path) else (self._fs, path)
        return EncodedImage(files.read(fs, inner), key)

    def key(self, name: str) -> str:
        """Name of an example in messages."""
        return printable(self._path(name))

    def _path(self, name: str) -> str:
        return name if is_url(name) else posixpath.join(self.folder, name)

    def _list(self, folder: str) -> set[str]:
        if not files.is_folder(self._fs, folder):
            return set()
        with files.explained(self._fs, folder):
            return {posixpath.basename(path) for path in self._fs.ls(folder, detail=False)}
