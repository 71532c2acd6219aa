"""Files that are written atomically: in full or not at all."""

import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_partial: set[pathlib.Path] = set()  # files that are being written


@contextmanager
def atomic_write(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path that replaces `path` at the end, or is removed on an error.

    Args:
        path: file to write; its folder is created, an existing file is replaced.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    _partial.add(partial)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        _partial.discard(partial)


def remove_partial_files() -> None:
    """Removes the files that are being written, before the process is ended."""
    for path in list(_partial):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes a file of UTF-8 text atomically.

    Args:
        path: file to write; an existing file is replaced.
        text: contents.
    """
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
