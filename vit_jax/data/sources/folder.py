"""A folder of images: one sub-folder per class, or a flat folder with a file of names."""

import dataclasses
import logging
import os
import posixpath
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import classes, files, listing
from vit_jax.data.sources.base import Source, decode_text
from vit_jax.errors import UserError, printable

logger = logging.getLogger(__name__)

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm",
    ".pgm",
}  # fmt: skip


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
            classes: path or URL of a file with one class per line, in the order of the labels, see
                `classes.order`; by default the file `classes.txt` in the folder, or else classes
                are sorted, by value if all of them are numbers.
        """

        names_file: str | None = None
        classes: str | None = None

    def __init__(self, config: Config, place: str | os.PathLike[str]) -> None:
        """Lists the images.

        Args:
            config: options of the spec.
            place: path or URL of the folder.

        Raises:
            UserError: no such folder or names file, no images, a class without images, or a names
                file that cannot be parsed or that names absent files.
        """
        self._fs, root = listing.open_folder(os.fspath(place))
        paths, folders, left_out = listing.find(self._fs, root)
        class_file = config.classes or _class_file(self._fs, root, paths)
        found = (
            _read_names(config.names_file, root, set(paths))
            if config.names_file
            else _read_classes(root, paths, folders, left_out, class_file)
        )
        left_out.log(os.fspath(place))
        order, names = classes.order((name for _, name in found), class_file)
        self.class_names: list[str] = [printable(name) for name in names]
        index = {name: label for label, name in enumerate(order)}
        if not config.names_file:
            found.sort(key=lambda pair: (index[pair[1]], pair[0]))
        self._paths = [path for path, _ in found]
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
        path, annotation = self._paths[index], self.annotation(index)
        return {"image": EncodedImage(files.read(self._fs, path), annotation["key"]), **annotation}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        label = int(self._labels[index])
        name = self.class_names[label]
        key = printable(self._paths[index])
        return {"label": label, "name": name, "captions": [name], "key": key}


def _class_file(fs: Any, root: str, paths: list[str]) -> str | None:
    """URL of the file of classes in the folder."""
    path = posixpath.join(root, classes.FILE_NAME)
    return fs.unstrip_protocol(path) if path in paths else None


def _read_classes(
    root: str,
    paths: list[str],
    folders: set[str],
    left_out: listing.LeftOut,
    class_file: str | None,
) -> list[tuple[str, str]]:
    """(image, class name) of a folder with one sub-folder per class."""
    images = [path for path in paths if is_image(path)]
    if loose := [path for path in images if "/" not in listing.inside_of(root, path)]:
        raise UserError(
            f"{root} has images outside of class folders, as {posixpath.basename(loose[0])}: move "
            "them into one sub-folder per class, or give a names file with lines "
            "`file.png<TAB>label name`, as folder:DIR?names_file=FILE"
        )
    if not images:
        expected = " ".join(sorted(SUFFIXES))
        raise UserError(f"no images in {root}: expected sub-folders of {expected} files")
    for path in set(paths) - set(images) - {posixpath.join(root, classes.FILE_NAME)}:
        suffix = posixpath.splitext(path)[1].lower()
        left_out.add(f"with the suffix {suffix}" if suffix else "without a suffix", path)
    found = [(path, listing.inside_of(root, path).partition("/")[0]) for path in images]
    empty = sorted(folders - {name for _, name in found})
    for name in filter(is_image, empty):
        left_out.add("folders with the suffix of an image", name)
    # A file of classes names those without images, too.
    if (lacking := [name for name in empty if not is_image(name)]) and class_file is None:
        raise UserError(
            f"class folders without images in {root}: {', '.join(lacking[:5])}; remove them, or "
            "name all classes in a file, as folder:DIR?classes=FILE"
        )
    return found


def _read_names(names_file: str, root: str, present: set[str]) -> list[tuple[str, str]]:
    """(image, label name) of every line of a names file."""
    fs, inner = files.file_system(names_file)
    if not files.is_file(fs, inner):
        raise UserError(f"no names file {names_file}")
    text = decode_text(files.read(fs, inner), f"the names file {names_file}")
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
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
        message = (
            f"{names_file} names {len(absent)} files that are not in {root}: "
            f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}"
        )
        if len(absent) == len(found):
            raise UserError(message)
        logger.warning("%s; they count as broken examples", printable(message))
    return list(found.items())


def is_image(path: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return posixpath.splitext(path)[1].lower() in SUFFIXES
