"""Index of the examples of tar shards, built once and mapped into memory.

The index of a shard lies beside it as `SHARD.index`, or in the cache folder where the shard's
folder cannot be written. It is a line of JSON, with the shard's size and time of change, which make
a stale index detectable, and the members that are left out; then the rows of `ROW`, little-endian.
The rows of all shards are joined in one file of the cache folder, which processes map into memory
and so share.
"""

import concurrent.futures
import hashlib
import json
import logging
import pathlib
import tarfile
from typing import Any

import numpy as np

from vit_jax.data.cache import cache_dir, find_cached, write_atomically
from vit_jax.data.progress import progress
from vit_jax.data.sources import tar_members
from vit_jax.data.sources.base import parse_label
from vit_jax.data.sources.files import explained, is_local
from vit_jax.data.sources.listing import LeftOut, is_hidden
from vit_jax.data.sources.tar_members import Member
from vit_jax.errors import UserError, printable

logger = logging.getLogger(__name__)

ROW = np.dtype([("start", "<u8"), ("length", "<u8"), ("shard", "<i4"), ("label", "<i4")])
"""Place of an example, in 24 bytes: first byte of its first tar header, length to the end of its
last member, number of the shard, and class of its `.cls` or `.json` member."""

NO_LABEL, BAD_LABEL, DAMAGED, NAMED = -1, -2, -3, -4
"""Values instead of a label: no label; one that is neither number nor text; a row that stands for
the place where the rest of a shard cannot be read; the name of a class."""

DAMAGES = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError)
"""Exceptions of `tarfile` on damaged shards."""

_FOLDER = "tar_index"  # within the cache
_FORMAT = "vit_jax tar index 2"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_BLOCK = tarfile.BLOCKSIZE


def index_shards(fs: Any, paths: list[str]) -> tuple[pathlib.Path, LeftOut]:
    """Indexes the shards that have no index yet.

    Args:
        fs: fsspec file system.
        paths: paths of the shards within it.

    Returns:
        Path of the file with the rows of all shards, and the members that are left out.

    Raises:
        UserError: a shard is absent, compressed or no tar file.
    """
    left_out = LeftOut()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        stamps = list(pool.map(lambda path: _stamp(fs, path), paths))
        names = json.dumps([_FORMAT, fs.to_json(), paths, stamps])
        joined = find_cached(f"{_FOLDER}/{hashlib.sha256(names.encode()).hexdigest()[:32]}.rows")
        summary = joined.with_suffix(".json")
        if joined.exists() and summary.exists():
            left_out.counts = {
                k: (n, first) for k, (n, first) in json.loads(summary.read_text()).items()
            }
            return joined, left_out
        jobs = zip(paths, stamps, strict=True)
        found = pool.map(lambda job: _shard_rows(fs, *job), jobs)
        parts = list(progress(found, "Indexing tar shards", total=len(paths)))
    for number, (rows, counts) in enumerate(parts):
        rows["shard"] = number
        for reason, (count, first) in counts.items():
            left_out.add(reason, first, count)
    joined = cache_dir() / _FOLDER / joined.name
    write_atomically(joined.with_suffix(".json"), json.dumps(left_out.counts).encode())
    write_atomically(joined, b"".join(rows.tobytes() for rows, _ in parts))
    return joined, left_out


def read_index(path: pathlib.Path) -> np.ndarray:
    """Maps the rows of all shards, (N,) of `ROW`, into memory.

    Args:
        path: result of `index_shards`.
    """
    if path.stat().st_size == 0:
        return np.zeros(0, ROW)
    return np.memmap(path, ROW, mode="r")


def _stamp(fs: Any, path: str) -> dict[str, Any]:
    """Size and time of change of a shard."""
    with explained(fs, path):
        info = fs.info(path)
    changed = next(
        (info[k] for k in ("mtime", "LastModified", "updated", "created") if k in info), 0
    )
    return {"size": info["size"], "changed": str(changed)}


def _shard_rows(fs: Any, path: str, stamp: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """Reads the rows of a shard, and what is left out, from its index, or builds the index."""
    beside = f"{path}.index"
    digest = hashlib.sha256(f"{fs.to_json()}{path}".encode("utf-8", "surrogateescape")).hexdigest()
    cached = f"{_FOLDER}/{digest[:32]}.index"
    for read in (lambda: fs.cat_file(beside), find_cached(cached).read_bytes):
        try:
            line, _, data = read().partition(b"\n")
            header = json.loads(line)
            if header["rows"] == len(data) and header["stamp"] == [_FORMAT, stamp]:
                return np.frombuffer(data, ROW).copy(), header["left_out"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
    with explained(fs, path):
        rows, left_out = find_examples(fs, path, stamp["size"])
    data = rows.tobytes()
    header = {"stamp": [_FORMAT, stamp], "rows": len(data), "left_out": left_out.counts}
    data = json.dumps(header).encode() + b"\n" + data
    try:
        if is_local(fs):
            write_atomically(pathlib.Path(beside), data)
        else:
            fs.pipe_file(beside, data)
    except Exception as error:  # the errors of buckets have no common class
        instead = cache_dir() / cached
        logger.info("Cannot write %s (%s), wrote %s instead", printable(beside), error, instead)
        write_atomically(instead, data)
    return rows, dict(left_out.counts)


def find_examples(fs: Any, path: str, size: int) -> tuple[np.ndarray, LeftOut]:
    """Finds the examples of a shard, see `tar_members`.

    A truncated or damaged shard has the examples before that place and one row `DAMAGED`.

    Args:
        fs: fsspec file system.
        path: path of the shard within it.
        size: size of the shard, bytes.

    Returns:
        (N,) rows of `ROW`, with shard number 0, and the members that are left out.

    Raises:
        UserError: the shard is compressed or cannot be read.
    """
    rows: list[tuple[int, int, int, int]] = []
    left_out = LeftOut()
    group: list[Member] = []

    def finish() -> None:
        for members in tar_members.examples(group, left_out) if group else ():
            _, annotations = tar_members.choose([member.name for member in members])
            labels = [
                members[annotations[kind]].label for kind in ("cls", "json") if kind in annotations
            ]
            label = next((label for label in labels if label != NO_LABEL), NO_LABEL)
            start, end = members[0].start, min(members[-1].end, size)
            rows.append((start, end - start, 0, label))
        group.clear()

    with fs.open(path, "rb") as file:
        if file.read(6).startswith(_COMPRESSED):
            raise UserError(
                f"{path} is compressed, so single examples cannot be read: decompress it"
            )
        file.seek(0)
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every one
                    if member.size < 0:  # it would loop forever
                        raise tarfile.ReadError(f"{member.name} has a negative size")
                    own_end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                    if reason := _why_left_out(member):
                        left_out.add(reason, member.name)
                    elif member.isfile():
                        name = tar_members.split_name(member.name)
                        if group and group[0].name.group != name.group:
                            finish()
                        label = _read_label(file, member, name.suffix)
                        group.append(Member(name, member.offset, own_end, label))
                    end = own_end
        except DAMAGES as error:
            logger.warning("%s", printable(f"{path}: {error} at byte {end}"))
        has_image = any(member.name.is_image for member in group)
        finish()
        # `tarfile` treats a truncated or damaged header as the end of the file.
        if end < size:
            file.seek(end)
            if any(file.read(_BLOCK)):
                rows.append((end, size - end, 0, DAMAGED))
        elif end > size and not has_image:
            rows.append((size, 0, 0, DAMAGED))
    return np.array(rows, ROW), left_out


def _why_left_out(member: tarfile.TarInfo) -> str:
    """Reason why a member cannot belong to an example; "" if it can, and for folders."""
    if is_hidden(member.name):
        return "hidden"
    if member.issym() or member.islnk():
        return "links"
    if member.issparse() or not (member.isreg() or member.isdir()):
        return "that are no regular files"
    return ""


def _read_label(file: Any, member: tarfile.TarInfo, suffix: str) -> int:
    """Class of a .cls or .json member, or one of the values instead."""
    if suffix not in ("cls", "json"):
        return NO_LABEL
    file.seek(member.offset_data)
    value: Any = file.read(min(member.size, 1000) if suffix == "cls" else member.size)
    if suffix == "json":
        if b'"label"' not in value:
            return NO_LABEL
        try:
            fields = json.loads(value)
        except (ValueError, RecursionError):
            return BAD_LABEL
        value = fields.get("label") if isinstance(fields, dict) else None
    label = parse_label(value)
    if label is None or label == -1:
        return NO_LABEL
    if isinstance(label, str):
        return NAMED
    is_index = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 2**31
    return label if is_index else BAD_LABEL
