"""Files that are written atomically: in full or not at all."""

import os
import pathlib
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vit_jax import paths
from vit_jax.paths import StrPath

_partial: set[pathlib.Path] = set()  # files that are being written


@contextmanager
def atomic_write(path: StrPath) -> Iterator[pathlib.Path]:
    """Yields a temporary local path that replaces `path` at the end, or is removed on an error.

    Args:
        path: file to write, local or in a bucket; its folder is created, an existing file is
            replaced.
    """
    target = paths.as_path(path) if paths.is_url(path) else pathlib.Path(path)
    in_bucket = paths.is_url(target)
    if in_bucket:
        partial = pathlib.Path(tempfile.gettempdir()) / f"{uuid.uuid4().hex}-{target.name}"
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = pathlib.Path(target.with_name(f"{target.name}.partial"))
    _partial.add(partial)
    try:
        yield partial
        if in_bucket:
            paths.upload(partial, target)
        else:
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
        _partial.discard(partial)


def remove_partial_files() -> None:
    """Removes the files that are being written, before the process is ended."""
    for path in list(_partial):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_text(path: StrPath, text: str) -> None:
    """Writes a file of UTF-8 text atomically.

    Args:
        path: file to write, local or in a bucket; an existing file is replaced.
        text: contents.
    """
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append_text(path: StrPath, text: str) -> None:
    """Appends to a file of UTF-8 text, which is created if need be. Objects are written again.

    Args:
        path: file, local or in a bucket.
        text: what is appended.
    """
    target = paths.as_path(path)
    if paths.is_url(target):
        write_text(target, (target.read_text() if target.exists() else "") + text)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a") as file:
        file.write(text)
