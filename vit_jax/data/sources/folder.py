"""A folder of images: one sub-folder a class, or a flat folder with a file of names."""

import os
import posixpath
from collections.abc import Iterable
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files
from vit_jax.data.sources.base import decode_text
from vit_jax.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}


class ImageFolder:
    """Images of a folder: one sub-folder a class, or a flat folder with a names file.

    A line of the names file is `file.png<TAB>label name`; without a tab the first comma separates.
    The images it names are the source, in its order; others in the folder are left out.
    An example has `image`, `label`, `name`, `captions` ([name]) and `key`, its path.

    Raises:
      UserError: no such folder or names file, no images, an empty class, a names file that cannot
        be understood or names absent files.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        names_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self._fs, root = files.file_system(os.fspath(folder))
        with files.explained(self._fs, os.fspath(folder)):
            present, is_folder = self._fs.exists(root), self._fs.isdir(root)
        if not present:
            raise UserError(f"no image folder {folder}")
        if not is_folder:
            raise UserError(f"{folder} is a file, expected a folder of pictures")
        paths = sorted(p for p in self._fs.find(root) if _is_shown(p, root))
        found = (
            _read_names(os.fspath(names_file), root, set(paths))
            if names_file
            else _read_classes(root, self._fs, paths)
        )
        self._paths = [path for path, _ in found]
        self.class_names = sorted({name for _, name in found})
        index = {name: label for label, name in enumerate(self.class_names)}
        self.labels = np.array([index[name] for _, name in found], np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        return {"image": EncodedImage(files.read(self._fs, path), path), **self.annotation(index)}

    def annotation(self, index: int) -> dict[str, Any]:
        label = int(self.labels[index])
        name = self.class_names[label]
        return {"label": label, "name": name, "captions": [name], "key": self._paths[index]}


def _is_shown(path: str, root: str) -> bool:
    """Whether neither the file nor a folder on the way to it is hidden."""
    return not any(part.startswith(".") for part in _inside(path, root).split("/"))


def _inside(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/")


def _read_classes(root: str, fs: Any, paths: list[str]) -> list[tuple[str, str]]:
    """(image, class name) of a folder with one sub-folder a class, sorted."""
    pictures = _pictures(paths)
    if loose := [path for path in pictures if "/" not in _inside(path, root)]:
        raise UserError(
            f"{root} has pictures outside class folders, as {posixpath.basename(loose[0])}: move "
            "them into one sub-folder a class, or give a names file with lines "
            "`file.png<TAB>label name`"
        )
    if not pictures:
        expected = " ".join(sorted(SUFFIXES))
        raise UserError(f"no pictures in {root}: expected sub-folders of {expected} files")
    found = [(path, _inside(path, root).partition("/")[0]) for path in pictures]
    folders = (posixpath.basename(p["name"]) for p in fs.ls(root, True) if p["type"] == "directory")
    full = {name for _, name in found}
    if empty := sorted(f for f in folders if not f.startswith(".") and f not in full):
        raise UserError(f"class folders without pictures in {root}: {', '.join(empty[:5])}")
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


def _pictures(paths: Iterable[str]) -> list[str]:
    return [p for p in paths if posixpath.splitext(p)[1].lower() in SUFFIXES]
