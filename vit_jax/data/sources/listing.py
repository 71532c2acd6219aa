"""Files below a folder, through symbolic links, and counts of what is left out."""

import logging
import os
import posixpath
from collections.abc import Iterator
from typing import Any

from vit_jax.data.sources import files
from vit_jax.errors import UserError, printable

logger = logging.getLogger(__name__)

_FOREIGN = {"__MACOSX", "@eaDir"}  # previews and metadata that systems store beside images


class LeftOut:
    """Counts files, or parts of them, that are left out.

    Attributes:
        counts: number and name of the first one, by reason.
    """

    def __init__(self) -> None:
        """Starts at zero."""
        self.counts: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Counts files.

        Args:
            reason: reason why they are left out.
            name: name of the first one.
            count: number of files.
        """
        before, first = self.counts.get(reason, (0, posixpath.basename(name)))
        self.counts[reason] = (before + count, first)

    def log(self, place: str, verb: str = "left out") -> None:
        """Logs one line with the counts; nothing where there are none.

        Args:
            place: name of the source.
            verb: verb of the line, where the files are not left out.
        """
        if self.counts:
            parts = [f"{n:,} {reason} (as {name})" for reason, (n, name) in self.counts.items()]
            logger.warning("%s", printable(f"{place}: {verb} {', '.join(parts)}"))


def is_hidden(path: str) -> bool:
    """Whether a relative path has a hidden part, or one that a system adds beside images."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part in _FOREIGN
        for part in path.split("/")
    )


def open_folder(place: str) -> tuple[Any, str]:
    """Opens the file system of a folder of images.

    Args:
        place: path or URL of the folder.

    Returns:
        The fsspec file system, and the path within it.

    Raises:
        UserError: there is no such folder.
    """
    fs, root = files.file_system(place)
    with files.explained(fs, place):
        present, is_folder = fs.exists(root), fs.isdir(root)
    if not present:
        raise UserError(f"no image folder {place}")
    if not is_folder:
        raise UserError(f"{place} is a file, expected a folder of images")
    return fs, root


def inside_of(root: str, path: str) -> str:
    """Returns a path relative to the folder that it is below."""
    return path[len(root) :].lstrip("/")


def find(fs: Any, root: str) -> tuple[list[str], set[str], LeftOut]:
    """Finds the files below a folder.

    Args:
        fs: fsspec file system.
        root: path within it.

    Returns:
        Sorted paths of the visible files, names of the folders directly below the root, and what
        is left out: hidden files, broken links, and everything that is neither file nor folder.

    Raises:
        UserError: the folder cannot be listed.
    """
    left_out, folders = LeftOut(), set[str]()
    if files.is_local(fs):
        return sorted(_walk(root, folders, left_out)), folders, left_out
    paths = []
    with files.explained(fs, root):
        found = fs.find(root)
    for path in found:
        inside = inside_of(root, path)
        if is_hidden(inside):
            left_out.add("hidden", inside)
            continue
        paths.append(path)
        if "/" in inside:
            folders.add(inside.partition("/")[0])
    return sorted(paths), folders, left_out


def _walk(root: str, folders: set[str], left_out: LeftOut) -> Iterator[str]:
    # With each folder, those above it: a link to one of them would never end.
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while stack:
        folder, above = stack.pop()
        try:
            stat = os.stat(folder)
            entries = list(os.scandir(folder))
        except OSError as error:
            if folder == root:
                raise files.cannot_read(root, error) from error
            left_out.add("folders that cannot be opened", folder)
            folders.discard(os.path.relpath(folder, root))
            continue
        if (identity := (stat.st_dev, stat.st_ino)) in above:
            left_out.add("links to a folder above", folder)
            continue
        for entry in entries:
            if is_hidden(entry.name):
                left_out.add("hidden", entry.name)
            elif (kind := _kind(entry)) == "folder":
                if folder == root:
                    folders.add(entry.name)
                stack.append((entry.path, above | {identity}))
            elif kind == "file":
                yield entry.path
            else:
                left_out.add(kind, entry.name)


def _kind(entry: os.DirEntry[str]) -> str:
    """Returns "file", "folder", or the reason why an entry is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a circle of links
        return "broken links"
    return "broken links" if entry.is_symlink() else "that are no regular files"
