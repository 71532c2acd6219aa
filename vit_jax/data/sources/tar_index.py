"""Index of the examples of tar shards, built once and mapped into memory.

The index of a shard lies beside it as `SHARD.index`, or in the cache folder where the shard's
folder cannot be written. It is a line of JSON with the shard's size and time of change, which make
a stale index detectable, and the rows of `ROW`, little-endian. The rows of all shards are joined in
one file of the cache folder, which processes map into memory and so share.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import tarfile
import tempfile
from typing import Any

import numpy as np

from vit_jax.data.cache import cache_dir
from vit_jax.data.progress import progress
from vit_jax.data.sources.files import explained, is_local
from vit_jax.data.sources.folder import SUFFIXES
from vit_jax.errors import UserError

logger = logging.getLogger(__name__)

ROW = np.dtype([("start", "<u8"), ("length", "<u8"), ("shard", "<i4"), ("label", "<i4")])
"""Place of an example, in 24 bytes: first byte of its first tar header, length to the end of its
last member, number of the shard, and class of its `.cls` member."""

NO_LABEL, BAD_LABEL, DAMAGED = -1, -2, -3
"""Values instead of a label: no `.cls` member; a `.cls` member that is no number; a row that stands
for the place where the rest of a shard cannot be read."""

_FORMAT = "vit_jax tar index 1"
_BLOCK = tarfile.BLOCKSIZE


def index_shards(fs: Any, paths: list[str]) -> pathlib.Path:
    """Indexes the shards that have no index yet.

    Args:
        fs: fsspec file system.
        paths: paths of the shards within it.

    Returns:
        Path of the file with the rows of all shards.

    Raises:
        UserError: a shard is absent, compressed or no tar file.
    """
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        stamps = list(pool.map(lambda path: _stamp(fs, path), paths))
        names = json.dumps([fs.to_json(), paths, stamps])
        joined = _cache() / f"{hashlib.sha256(names.encode()).hexdigest()[:32]}.rows"
        if joined.exists():
            return joined
        jobs = zip(paths, stamps, strict=True)
        found = pool.map(lambda job: _shard_rows(fs, *job), jobs)
        parts = list(progress(found, "Indexing tar shards", total=len(paths)))
    for number, rows in enumerate(parts):
        rows["shard"] = number
    _write(joined, b"".join(rows.tobytes() for rows in parts))
    return joined


def read_index(path: pathlib.Path) -> np.ndarray:
    """Maps the rows of all shards, (N,) of `ROW`, into memory.

    Args:
        path: result of `index_shards`.
    """
    if path.stat().st_size == 0:
        return np.zeros(0, ROW)
    return np.memmap(path, ROW, mode="r")


def _cache() -> pathlib.Path:
    return cache_dir() / "tar_index"


def _stamp(fs: Any, path: str) -> dict[str, Any]:
    """Size and time of change of a shard."""
    with explained(fs, path):
        info = fs.info(path)
    changed = next(
        (info[k] for k in ("mtime", "LastModified", "updated", "created") if k in info), 0
    )
    return {"size": info["size"], "changed": str(changed)}


def _shard_rows(fs: Any, path: str, stamp: dict[str, Any]) -> np.ndarray:
    """Reads the rows of a shard from its index, or builds the index."""
    beside = f"{path}.index"
    digest = hashlib.sha256(f"{fs.to_json()}{path}".encode()).hexdigest()[:32]
    cached = _cache() / f"{digest}.index"
    for read in (lambda: fs.cat_file(beside), cached.read_bytes):
        try:
            line, _, data = read().partition(b"\n")
            header = json.loads(line)
        except (OSError, ValueError):
            continue
        if header == _header(stamp, len(data) // ROW.itemsize):
            return np.frombuffer(data, ROW).copy()
    with explained(fs, path):
        rows = find_examples(fs, path, stamp["size"])
    data = json.dumps(_header(stamp, len(rows))).encode() + b"\n" + rows.tobytes()
    try:
        if is_local(fs):
            _write(pathlib.Path(beside), data)
        else:
            fs.pipe_file(beside, data)
    except Exception as error:  # the errors of buckets have no common class
        logger.info("Cannot write %s (%s), wrote %s instead", beside, error, cached)
        _write(cached, data)
    return rows


def _header(stamp: dict[str, Any], examples: int) -> dict[str, Any]:
    return {"format": _FORMAT, **stamp, "examples": examples}


def _write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file atomically, even when several processes write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.chmod(file.name, 0o644)  # temporary files are private to their owner
    os.replace(file.name, path)


def find_examples(fs: Any, path: str, size: int) -> np.ndarray:
    """Finds the examples of a shard: adjacent members with the same key, as in WebDataset.

    Examples without an image are skipped. A truncated or damaged shard has the examples before that
    place and one row `DAMAGED`.

    Args:
        fs: fsspec file system.
        path: path of the shard within it.
        size: size of the shard, bytes.

    Returns:
        (N,) rows of `ROW`, with shard number 0.

    Raises:
        UserError: the shard is compressed or cannot be read.
    """
    rows: list[tuple[int, int, int, int]] = []
    key, start, label, has_image = None, 0, NO_LABEL, False

    def finish(end: int) -> None:
        if has_image:
            rows.append((start, end - start, 0, label))

    with fs.open(path, "rb") as file:
        if file.read(6)[:2] == b"\x1f\x8b":
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
                    if member.isfile():
                        own, suffix = split_name(member.name)
                        if own != key:
                            finish(member.offset)
                            key, start, label, has_image = own, member.offset, NO_LABEL, False
                        has_image |= is_image(suffix)
                        if suffix == "cls":
                            label = _read_label(file, member)
                    end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        except (tarfile.TarError, EOFError, ValueError) as error:
            logger.warning("%s: %s at byte %d", path, error, end)
        finish(min(end, size))
        # `tarfile` treats a truncated or damaged header as the end of the file.
        if end < size:
            file.seek(end)
            if any(file.read(_BLOCK)):
                rows.append((end, size - end, 0, DAMAGED))
        elif end > size and not has_image:
            rows.append((size, 0, 0, DAMAGED))
    return np.array(rows, ROW)


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: as in WebDataset, the first dot of the file name separates."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def is_image(suffix: str) -> bool:
    """Whether a member with this suffix is an image."""
    return f".{suffix.rpartition('.')[2]}" in SUFFIXES


def _read_label(file: Any, member: tarfile.TarInfo) -> int:
    file.seek(member.offset_data)
    text = file.read(min(member.size, 20)).strip()
    return int(text) if text.isdigit() and len(text) < 10 else BAD_LABEL
