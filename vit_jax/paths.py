"""Paths that users give: of local files, and gs:// and s3:// URLs through `etils.epath`.

The only module that decides whether a path is a URL. A path that must be local is refused as a URL
before anything is written, because `pathlib` takes gs://bucket for a local folder named `gs:`.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vit_jax.errors import MissingPackageError, UserError

if TYPE_CHECKING:
    from etils import epath

StrPath = str | os.PathLike[str]

# The second slash of a URL is lost in a `pathlib.Path`.
_URL = re.compile(r"(?:[A-Za-z][\w+.-]*::)*([A-Za-z][\w+.-]+):/")
_LOCAL_URL = re.compile(r"file:/(?://)?(?=[^/])")
# Package of fsspec and extra of this library that buckets need.
_PACKAGES = {"gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_BUCKETS = ("gs", "s3")


def is_url(path: StrPath) -> bool:
    """Returns whether a path is a URL, as gs://bucket/folder."""
    return _URL.match(os.fspath(path)) is not None


def missing_package(url: str) -> str:
    """Returns how to install the package that a URL needs; "" if it needs none or has it."""
    found = _URL.match(url)
    package, extra = _PACKAGES.get(found[1] if found else "", ("", ""))
    if not package or importlib.util.find_spec(package):
        return ""
    return f"pip install 'vit_jax[{extra}]'"


def as_local_path(path: StrPath, why: str) -> pathlib.Path:
    """Returns the path of a file or folder that must be local. `~` and file:// are resolved.

    Args:
        path: path that the user gave.
        why: reason why no URL is possible, as a clause.

    Raises:
        UserError: the path is a URL, or starts with `~` where there is no home folder.
    """
    text = _local_form(os.fspath(path))
    if is_url(text):
        raise UserError(
            f"{text} is a URL: expected a local path, because {why}. Mount the bucket, or copy the "
            "files"
        )
    return pathlib.Path(text)


def as_path(path: StrPath) -> "epath.Path":
    """Returns the path of a file or folder that may be local or in a bucket.

    Args:
        path: path that the user gave: local, gs:// or s3://.

    Raises:
        UserError: another kind of URL, or a bucket that cannot be reached.
        MissingPackageError: the package for this kind of bucket is not installed.
    """
    from etils import epath

    text = _local_form(os.fspath(path))
    if is_url(text):
        scheme, separator, rest = text.partition("://")
        if scheme not in _BUCKETS or not separator:
            raise UserError(f"{text} is a URL: expected a local path, gs:// or s3://")
        if hint := missing_package(text):
            raise MissingPackageError(f"{text} needs another package: {hint}")
        _check_bucket(f"{scheme}://{rest.partition('/')[0]}")
    return epath.Path(text)


@functools.cache
def _check_bucket(bucket: str) -> None:
    """Makes one request, so that wrong credentials are found before anything is written."""
    with _explained(bucket), contextlib.suppress(FileNotFoundError):
        file_system = _file_system(bucket)
        # Other processes write to the same folders.
        file_system.dircache.use_listings_cache = False
        file_system.info(f"{bucket}/.vit_jax")  # which is not there


def _file_system(url: str) -> Any:
    """The file system behind the paths of epath."""
    from etils.epath import backend

    return backend.fsspec_backend.fs(url)


def upload(source: pathlib.Path, target: StrPath) -> None:
    """Copies a local file to a URL: in full or not at all.

    Args:
        source: local file.
        target: gs:// or s3:// URL.

    Raises:
        UserError: the bucket does not exist or cannot be written.
    """
    url = os.fspath(target)
    with _explained(url):
        _file_system(url).put_file(str(source), url)


def download(source: StrPath, target: pathlib.Path) -> None:
    """Copies an object to a local file.

    Args:
        source: gs:// or s3:// URL.
        target: local file.

    Raises:
        UserError: the object cannot be read.
    """
    url = os.fspath(source)
    with _explained(url):
        _file_system(url).get_file(url, str(target))


def checksum(source: StrPath) -> str:
    """Returns a text that changes with an object.

    Args:
        source: gs:// or s3:// URL.
    """
    url = os.fspath(source)
    with _explained(url):
        return str(_file_system(url).checksum(url))


def list_objects(folder: StrPath) -> dict[str, dict[str, int | str]]:
    """Lists the objects below a folder of a bucket of Google Cloud.

    Args:
        folder: gs:// URL.

    Returns:
        Name from the folder on -> {"bytes": size, "crc32c": checksum that the bucket has made}.
    """
    url = os.fspath(folder).rstrip("/")
    with _explained(url):
        found = _file_system(url).find(url, detail=True)
    start = len(url.removeprefix("gs://")) + 1
    return {
        name[start:]: {"bytes": info["size"], "crc32c": info.get("crc32c", "")}
        for name, info in found.items()
    }


def absolute(path: "epath.Path") -> "epath.Path":
    """Makes a path independent of the current folder."""
    return path if is_url(path) else path.resolve()


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns the errors of buckets within the block, which have no common class, into a UserError.

    Args:
        url: URL for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason = "there is no such bucket or object"
        raise UserError(f"cannot access {url}: {reason}") from error


def _local_form(text: str) -> str:
    """Replaces file:// and `~` by paths of the local file system, and gcs:// by gs://."""
    text = re.sub("^gcs://", "gs://", text)
    text = _LOCAL_URL.sub("/", text, count=1) if text.startswith("file:") else text
    expanded = os.path.expanduser(text)  # unlike pathlib's, it leaves what it cannot expand
    if expanded.startswith("~") and not os.path.lexists(expanded.split("/")[0]):
        raise UserError(f"{text}: the home folder is not known; give the path in full")
    return expanded
