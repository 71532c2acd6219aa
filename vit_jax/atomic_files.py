"""Files that appear whole or not at all."""

import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def atomic_write(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, renamed to it at the end or removed on an error."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes a file of UTF-8 text; an existing one is replaced."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
