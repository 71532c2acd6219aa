"""Images to detect in: one, a list, or a folder; and tiles of large images."""

import dataclasses
import math
import os
import posixpath
from collections.abc import Sequence
from typing import Any

from vit_jax.data.sources import files, listing
from vit_jax.data.sources.folder import is_image
from vit_jax.errors import UserError

# Top, left, height and width of a part of an image, px.
Window = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Images:
    """Images and their names.

    Attributes:
        keys: path of each image, relative to `folder` if there is one; "" for arrays.
        sources: each image, see `data.images.read_image`.
        folder: folder of the images; "" for images that are given one by one.
        single: whether one image was given, and not a list.
    """

    keys: list[str]
    sources: list[Any]
    folder: str = ""
    single: bool = False

    def name(self, index: int) -> str:
        """Returns the name of an image for messages."""
        return posixpath.join(self.folder, self.keys[index]) or f"number {index}"


def list_images(images: Any) -> Images:
    """Lists the images of an argument.

    Args:
        images: path or URL of an image or of a folder, an image of any kind that `read_image`
            takes, or a list of images.

    Raises:
        UserError: an empty list, a folder without images, or one that cannot be listed.
    """
    if isinstance(images, list | tuple):
        if not images:
            raise UserError("images is empty: expected at least one image")
        return Images([_key(image) for image in images], list(images))
    if isinstance(images, str | os.PathLike):
        place = os.fspath(images)
        fs, root = files.file_system(place)
        if files.is_folder(fs, root):
            return _list_folder(fs, root, place)
    return Images([_key(images)], [images], single=True)


def _key(image: Any) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else ""


def _list_folder(fs: Any, root: str, place: str) -> Images:
    paths, _, left_out = listing.find(fs, root)
    found = [path for path in paths if is_image(path)]
    for path in paths:
        if not is_image(path):
            left_out.add("that are no images", path)
    left_out.log(place)
    if not found:
        raise UserError(f"{place}: expected a folder with images; found none")
    sources = [path if files.is_local(fs) else fs.unstrip_protocol(path) for path in found]
    keys = [listing.inside_of(root, path) for path in found]
    return Images(keys, sources, folder=place)


def tile(height: int, width: int, size: int, overlap: float) -> list[Window]:
    """Divides an image into equal, overlapping tiles.

    Args:
        height: height of the image, px.
        width: width of the image, px.
        size: side of a tile, px.
        overlap: smallest fraction of its side that a tile shares with the next one.

    Returns:
        The whole image, and the tiles if there are several.
    """
    rows, columns = (_starts(side, size, overlap) for side in (height, width))
    tiles = [(top, left, min(size, height), min(size, width)) for top in rows for left in columns]
    return [(0, 0, height, width), *(tiles if len(tiles) > 1 else ())]


def _starts(side: int, size: int, overlap: float) -> Sequence[int]:
    """First pixels of the tiles along a side, equally spaced."""
    if side <= size:
        return (0,)
    count = math.ceil((side - size) / (size * (1 - overlap))) + 1
    return [round(i * (side - size) / (count - 1)) for i in range(count)]
