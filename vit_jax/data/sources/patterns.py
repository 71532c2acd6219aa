"""Files of a pattern, on local disks and in buckets."""

import glob
import itertools
import posixpath
import re
from collections.abc import Collection
from typing import Any

from vit_jax.data.sources import files
from vit_jax.data.sources.listing import LeftOut, is_hidden
from vit_jax.errors import UserError, printable

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: str, suffixes: Collection[str]) -> tuple[Any, list[str]]:
    """Lists the files of a pattern.

    Args:
        pattern: path or URL with `*`, `?`, `[...]` and `**` as in a shell, and braces `{a,b}` and
            `{00..99}`. A file or folder that exists under the very name is taken literally.
        suffixes: suffixes of the source's files. A pattern that leaves the suffix open, as `DIR/*`,
            matches only these.

    Returns:
        The file system and the paths within it, sorted within each alternative of the braces;
        alternatives keep their order.

    Raises:
        UserError: an alternative has no files.
    """
    fs, whole = files.file_system(pattern)
    if files.is_file(fs, whole):
        return fs, [whole]
    if files.is_folder(fs, whole):
        raise UserError(f"{pattern} is a folder: name its files, as {pattern}/*{min(suffixes)}")
    folder, rest = _literal_folder(fs, whole)
    paths: list[str] = []
    left_out = LeftOut()
    for each in expand_braces(rest):
        found = _match(fs, folder, each, left_out)
        if _is_open(each):
            found = _of_suffixes(found, suffixes, left_out)
        if not found:
            path = posixpath.join(folder, each)
            hint = f", one of {pattern!r}" if each != rest else ""
            raise UserError(f"no file {printable(path)!r}{hint}")
        paths += found
    left_out.log(pattern)
    return fs, list(dict.fromkeys(paths))


def _literal_folder(fs: Any, path: str) -> tuple[str, str]:
    """Splits a pattern at its first part that is not the name of a folder."""
    parts = path.split("/")
    for i, part in enumerate(parts[:-1]):
        if _has_magic(part) or "{" in part:
            if files.is_folder(fs, "/".join(parts[: i + 1])):
                continue
            return "/".join(parts[:i]), "/".join(parts[i:])
    return "/".join(parts[:-1]), parts[-1]


def _match(fs: Any, folder: str, pattern: str, left_out: LeftOut) -> list[str]:
    path = posixpath.join(folder or ("/" if files.is_local(fs) else ""), pattern)
    with files.explained(fs, path):
        if not _has_magic(pattern):
            return [path] * files.is_file(fs, path)
        escaped = posixpath.join(glob.escape(folder), pattern) if folder else path
        if files.is_local(fs):  # unlike fsspec's, it follows links
            names = set(glob.glob(escaped, recursive=True))
            for each in (other := {each for each in names if not fs.isfile(each)}):
                left_out.add("that are no files", each)
            return sorted(names - other)
        found = fs.glob(escaped, detail=True)
        inside = len(folder)
        return sorted(
            each
            for each, info in found.items()
            if info["type"] == "file" and not is_hidden(each[inside:])
        )


def _is_open(pattern: str) -> bool:
    """Whether a pattern leaves the suffix of the file names open."""
    return _has_magic(posixpath.basename(pattern).rpartition(".")[2])


def _of_suffixes(found: list[str], suffixes: Collection[str], left_out: LeftOut) -> list[str]:
    """The files with a suffix of the source; all of them, except indexes, where none has one."""
    kept = [path for path in found if posixpath.splitext(path)[1].lower() in suffixes]
    kept = kept or [path for path in found if path.removesuffix(".index") not in {*found} - {path}]
    for path in sorted({*found} - {*kept}):
        suffix = posixpath.splitext(path)[1]
        left_out.add(f"with the suffix {suffix}" if suffix else "without a suffix", path)
    return kept


def _has_magic(path: str) -> bool:
    return any(c in path for c in "*?[")


def expand_braces(pattern: str) -> list[str]:
    """Expands `{a,b}` and `{00..99}` as bash does; numbers have the width of the first one."""
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
