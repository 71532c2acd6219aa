"""Files on local disks and in gs:// or s3:// buckets, through fsspec."""

import contextlib
import itertools
import re
from collections.abc import Iterator
from typing import Any

import fsspec

from vit_jax.errors import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_EXTRAS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}


def file_system(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path within it.

    Raises:
        UserError: no such kind of file system, or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        package = _EXTRAS.get(path.partition("://")[0])
        hint = f"pip install {package}" if package else "expected a local path, gs:// or s3://"
        raise UserError(f"cannot open {path!r}: {error}; {hint}") from error


def is_local(fs: Any) -> bool:
    """Whether the operating system sees the files."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,))


def is_file(fs: Any, path: str) -> bool:
    """Whether the file is there.

    Raises:
        UserError: that cannot be known; `fs.isfile` would take a refused bucket for an absent file.
    """
    with explained(fs, path):
        try:
            return fs.info(path)["type"] == "file"
        except FileNotFoundError:
            return False


def expand(pattern: str) -> tuple[Any, list[str]]:
    """Files of a pattern: `*`, `?`, `[...]` and `**` as in a shell; braces `{a,b}`, `{00..99}`.

    Returns:
        The file system and the paths within it: sorted for each alternative of the braces, which
        keep their order.

    Raises:
        UserError: an alternative without files, which is named.
    """
    fs, _ = file_system(pattern)
    paths: list[str] = []
    for each in expand_braces(pattern):
        inner = fs._strip_protocol(each)
        with explained(fs, each):
            found = sorted(fs.glob(inner)) if _has_magic(inner) else [inner] * is_file(fs, inner)
        if not found:
            raise UserError(f"no file {each!r}" if each == pattern else _absent(each, pattern))
        paths += found
    return fs, list(dict.fromkeys(paths))


def _has_magic(path: str) -> bool:
    return any(c in path for c in "*?[")


def _absent(each: str, pattern: str) -> str:
    return f"no file {each!r}, one of {pattern!r}"


def expand_braces(pattern: str) -> list[str]:
    """`{a,b}` and `{00..99}` as in bash; a number keeps the width of the range's first."""
    pieces = _BRACES.split(pattern)  # text, inside, text, inside, ..., text
    choices = [_alternatives(p) if i % 2 else [p] for i, p in enumerate(pieces)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _alternatives(inside: str) -> list[str]:
    if match := _RANGE.fullmatch(inside):
        first, last = map(int, match.groups())
        if first > last:
            raise UserError(f"the range {{{inside}}} counts down: expected {{first..last}}")
        return [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def read(fs: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes of a file, `start` to `end` of them; one request of a bucket.

    Raises:
        UserError: the file is absent or cannot be read.
    """
    with explained(fs, path):
        return fs.cat_file(path, start=start, end=end)


@contextlib.contextmanager
def explained(fs: Any, path: str) -> Iterator[None]:
    """What goes wrong within, as a UserError that names the path."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no file {path!r}") from error
    except Exception as error:
        # What buckets raise, as when credentials are refused, has no common class.
        if is_local(fs) and not isinstance(error, OSError):
            raise
        raise UserError(f"cannot read {path}: {error or type(error).__name__}") from error
