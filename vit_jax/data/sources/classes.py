"""Order and names of classes: numbers by value, or as a file of classes says."""

import logging
import re
from collections.abc import Iterable

from vit_jax.data.sources import files
from vit_jax.data.sources.base import decode_text
from vit_jax.errors import UserError, unknown

logger = logging.getLogger(__name__)

FILE_NAME = "classes.txt"
"""File of classes that is read without being named, at the root of a folder of images."""

_MAX_LABEL = 1_000_000
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def sort_names(names: Iterable[str]) -> list[str]:
    """Sorts names of classes: by value if all of them are numbers, else as text."""
    names = list(names)
    if all(map(_NUMBER.fullmatch, names)):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def numbered(largest: int, place: str) -> list[str] | None:
    """Names of classes that are numbers, from 0 to the largest label.

    Args:
        largest: largest label; -1 where there is none.
        place: name of the source.

    Returns:
        The numbers as text; None, with a warning, for labels that can only be identifiers.
    """
    if largest > _MAX_LABEL:
        logger.warning("%s: the label %d is no class; labels are left out", place, largest)
        return None
    return [str(label) for label in range(largest + 1)]


def read_lines(path: str) -> list[str]:
    """Reads a text file with one class per line, in the order of the labels.

    Args:
        path: path or URL of a UTF-8 file; empty lines at its end do not count.

    Raises:
        UserError: the file is absent, not UTF-8, or a line of it is empty.
    """
    fs, inner = files.file_system(path)
    lines = decode_text(files.read(fs, inner), path).strip().split("\n")
    if not all(line.strip() for line in lines):
        raise UserError(f"{path}: expected the name of a class on every line")
    return [line.strip() for line in lines]


def order(found: Iterable[str], path: str | None) -> tuple[list[str], list[str]]:
    """Orders the classes of a folder of images.

    Args:
        found: names of classes that have images, as those of the sub-folders.
        path: file of classes, in which line i is the class of label i: `folder`,
            `folder<TAB>name`, or `folder name ...` as in ImageNet's LOC_synset_mapping.txt. Where
            the folders are numbers, the lines may be names only; then folder i is that of line i,
            counted from 0. None: `sort_names` orders the folders, which are also the names.

    Returns:
        Folder and name of each class, in the order of the labels.

    Raises:
        UserError: the file cannot be read, lists a class twice, or lacks one that was found.
    """
    if path is None:
        ordered = sort_names(set(found))
        return ordered, ordered
    lines, found = read_lines(path), set(found)
    for separator in ("\t", None):
        pairs = [line.split(separator, 1) for line in lines]
        if found <= {pair[0].strip() for pair in pairs}:
            folders = [pair[0].strip() for pair in pairs]
            if len(set(folders)) < len(folders):
                twice = next(name for name in folders if folders.count(name) > 1)
                raise UserError(f"{path} lists the class {twice!r} twice")
            return folders, [pair[-1].strip() for pair in pairs]
    if all(name.isascii() and name.isdigit() and int(name) < len(lines) for name in found):
        own = {int(name): name for name in found}
        return [own.get(i, str(i)) for i in range(len(lines))], lines
    raise unknown(min(found - set(lines)), lines, f"class: it is not in {path},")
