"""A folder of images: one sub-folder per class, or a flat folder with a file of names."""

import dataclasses
import os
import posixpath
from collections.abc import Iterable
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files
from vit_jax.data.sources.base import Source, decode_text
from vit_jax.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}


class ImageFolder(Source):
    """Images of a folder: one sub-folder per class, or a flat folder with a names file.

    An example has `image`, `label`, `name`, `captions` ([name]) and `key`, its path.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            names_file: path or URL of a file with lines `file.png<TAB>label name`; in a line
                without a tab the first comma separates. The source has the images that it names,
                in its order, and no others. By default, sub-folders are classes.
        """

        names_file: str | None = None

    def __init__(self, config: Config, place: str | os.PathLike[str]) -> None:
        """Lists the images.

        Args:
            config: options of the spec.
            place: path or URL of the folder.

        Raises:
            UserError: no such folder or names file, no images, a class without images, or a names
                file that cannot be parsed or that names absent files.
        """
        self._fs, root = files.file_system(os.fspath(place))
        with files.explained(self._fs, os.fspath(place)):
            present, is_folder = self._fs.exists(root), self._fs.isdir(root)
        if not present:
            raise UserError(f"no image folder {place}")
        if not is_folder:
            raise UserError(f"{place} is a file, expected a folder of images")
        paths = sorted(p for p in self._fs.find(root) if _is_visible(p, root))
        found = (
            _read_names(config.names_file, root, set(paths))
            if config.names_file
            else _read_classes(root, self._fs, paths)
        )
        self._paths = [path for path, _ in found]
        self.class_names: list[str] = sorted({name for _, name in found})
        index = {name: label for label, name in enumerate(self.class_names)}
        self._labels = np.array([index[name] for _, name in found], np.int64)

    @property
    def labels(self) -> np.ndarray:
        """See `Source`."""
        return self._labels

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        path = self._paths[index]
        return {"image": EncodedImage(files.read(self._fs, path), path), **self.annotation(index)}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        label = int(self._labels[index])
        name = self.class_names[label]
        return {"label": label, "name": name, "captions": [name], "key": self._paths[index]}


def _is_visible(path: str, root: str) -> bool:
    """Whether neither the file nor a folder between it and the root is hidden."""
    return not any(part.startswith(".") for part in _inside(path, root).split("/"))


def _inside(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/")


def _read_classes(root: str, fs: Any, paths: list[str]) -> list[tuple[str, str]]:
    """(image, class name) of a folder with one sub-folder per class, sorted."""
    images = _images(paths)
    if loose := [path for path in images if "/" not in _inside(path, root)]:
        raise UserError(
            f"{root} has images outside of class folders, as {posixpath.basename(loose[0])}: move "
            "them into one sub-folder per class, or give a names file with lines "
            "`file.png<TAB>label name`, as folder:DIR?names_file=FILE"
        )
    if not images:
        expected = " ".join(sorted(SUFFIXES))
        raise UserError(f"no images in {root}: expected sub-folders of {expected} files")
    found = [(path, _inside(path, root).partition("/")[0]) for path in images]
    folders = (posixpath.basename(p["name"]) for p in fs.ls(root, True) if p["type"] == "directory")
    full = {name for _, name in found}
    if empty := sorted(f for f in folders if not f.startswith(".") and f not in full):
        raise UserError(f"class folders without images in {root}: {', '.join(empty[:5])}")
    return sorted(found, key=lambda pair: (pair[1], pair[0]))


def _read_names(names_file: str, root: str, present: set[str]) -> list[tuple[str, str]]:
    """(image, label name) of every line of a names file."""
    fs, inner = files.file_system(names_file)
    if not files.is_file(fs, inner):
        raise UserError(f"no names file {names_file}")
    text = decode_text(files.read(fs, inner), f"the names file {names_file}")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        file, separator, name = line.partition("\t" if "\t" in line else ",")
        path, name = posixpath.join(root, file.strip()), name.strip()
        if not (separator and file.strip() and name):
            raise UserError(
                f"{names_file}:{number}: expected `file.png<TAB or comma>label name`, got {line!r}"
            )
        if found.setdefault(path, name) != name:
            raise UserError(f"{names_file}:{number}: {file.strip()} is also {found[path]!r} above")
    if not found:
        raise UserError(f"the names file {names_file} is empty: expected lines of file and label")
    if absent := [posixpath.basename(path) for path in found if path not in present]:
        raise UserError(
            f"{names_file} names {len(absent)} files that are not in {root}: "
            f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}"
        )
    return list(found.items())


def _images(paths: Iterable[str]) -> list[str]:
    return [p for p in paths if posixpath.splitext(p)[1].lower() in SUFFIXES]
