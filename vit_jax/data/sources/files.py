"""Files on local disks and in gs:// or s3:// buckets, through fsspec."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any

import fsspec

from vit_jax.errors import UserError, printable
from vit_jax.paths import missing_package


def file_system(path: str) -> tuple[Any, str]:
    """Opens the fsspec file system of a path or URL.

    Returns:
        The file system and the path within it.

    Raises:
        UserError: the path is empty, there is no such kind of file system, or its package is not
            installed.
    """
    if not path:
        raise UserError("the path is empty: expected NAME:PATH, as tar:/data/*.tar")
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        hint = missing_package(path) or "expected a local path, gs:// or s3://"
        raise UserError(f"cannot open {path!r}: {error}; {hint}") from error


def is_local(fs: Any) -> bool:
    """Whether a file system is that of the operating system."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,))


def is_file(fs: Any, path: str) -> bool:
    """Whether there is a file.

    Raises:
        UserError: access is refused, which `fs.isfile` would report as an absent file.
    """
    with explained(fs, path):
        try:
            return fs.info(path)["type"] == "file"
        except FileNotFoundError:
            return False


def read(fs: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """Reads the bytes [start, end) of a file, with one request of a bucket.

    Args:
        fs: fsspec file system.
        path: path within it.
        start: first byte; None for the beginning.
        end: byte after the last one; None for the end.

    Raises:
        UserError: the file is absent or cannot be read.
    """
    with explained(fs, path):
        if is_local(fs) and not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would never end
            raise UserError(f"{printable(path)} is not a regular file")
        return fs.cat_file(path, start=start, end=end)


def is_folder(fs: Any, path: str) -> bool:
    """Whether there is a folder.

    Raises:
        UserError: access is refused.
    """
    with explained(fs, path):
        return fs.isdir(path)


def cannot_read(path: str, error: Exception) -> UserError:
    """Builds the error for a file that cannot be read.

    Args:
        path: path for the message.
        error: error of the file system.
    """
    if isinstance(error, FileNotFoundError):
        return UserError(f"no file {printable(path)!r}")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"cannot read {printable(path)}: {reason or type(error).__name__}")


@contextlib.contextmanager
def explained(fs: Any, path: str) -> Iterator[None]:
    """Converts the errors of a file system into a UserError that contains the path.

    Args:
        fs: fsspec file system.
        path: path for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # The errors of buckets, as for refused credentials, have no common class. ValueError: the
        # operating system cannot represent the name.
        if is_local(fs) and not isinstance(error, OSError | ValueError):
            raise
        raise cannot_read(path, error) from error
