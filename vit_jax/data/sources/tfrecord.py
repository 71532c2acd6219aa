"""TFRecord files with random access, without TensorFlow.

A record is its length (uint64, little-endian), the masked CRC-32C of these 8 bytes, the data, and
the masked CRC-32C of the data (tensorflow/core/lib/io/record_writer.h). The places of the records
are found once, by their lengths alone, and kept in the user's cache.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import struct
from collections.abc import Sequence

import numpy as np

from vit_jax.data.cache import cache_dir, find_cached, write_atomically
from vit_jax.data.progress import progress
from vit_jax.data.sources.base import check_index
from vit_jax.errors import MissingPackageError, UserError

logger = logging.getLogger(__name__)

_FORMAT = "vit_jax tfrecord index 1"
_ROW = np.dtype([("start", "<u8"), ("length", "<u8"), ("file", "<u8")])
_DAMAGED = 2**64 - 1  # length of a row that stands for the rest of a file that cannot be read
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_LENGTH_BYTES = 8


class TfRecords:
    """The records of TFRecord files, as bytes."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Finds the records, or opens the index of an earlier process.

        Args:
            paths: paths of local files, not compressed.

        Raises:
            UserError: a file is absent or cannot be read.
            MissingPackageError: google-crc32c is not installed.
        """
        try:
            import google_crc32c  # noqa: F401
        except ImportError as error:
            raise MissingPackageError(
                f"{paths[0]} needs google-crc32c: run `pip install 'vit_jax[tfrecord]'`"
            ) from error
        self._paths = list(paths)
        self._rows = _index(self._paths)

    def __len__(self) -> int:
        """Number of records; the damaged rest of a file counts as one."""
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        """Reads a record.

        Raises:
            IndexError: there is no such record.
            UserError: the record is damaged.
        """
        row = self._rows[check_index(index, len(self))]
        path, start, length = self._paths[row["file"]], int(row["start"]), int(row["length"])
        if length == _DAMAGED:
            raise UserError(f"{path} is damaged or truncated from byte {start} on")
        with open(path, "rb") as file:
            file.seek(start + _HEADER.size)
            data, footer = file.read(length), file.read(_FOOTER.size)
        if len(footer) < _FOOTER.size or _FOOTER.unpack(footer)[0] != masked_crc(data):
            raise UserError(f"{path} is damaged: the record at byte {start} has another checksum")
        return data


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord stores it, rotated by 15 bits and shifted by a constant.

    Args:
        data: bytes of which it is the checksum.
    """
    import google_crc32c

    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _index(paths: list[str]) -> np.ndarray:
    """Places of all records, (N,) of `_ROW`, mapped into memory."""
    try:
        stamps = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    key = json.dumps([_FORMAT, [os.path.abspath(path) for path in paths], stamps])
    name = f"tfrecord_index/{hashlib.sha256(key.encode()).hexdigest()[:32]}.rows"
    path: pathlib.Path = find_cached(name)
    if not path.exists():
        path = cache_dir() / name
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            found = pool.map(_find_records, range(len(paths)), paths)
            rows = list(progress(found, "Indexing TFRecord files", total=len(paths)))
        write_atomically(path, np.concatenate(rows).tobytes())
    return np.memmap(path, _ROW, mode="r") if path.stat().st_size else np.zeros(0, _ROW)


def _find_records(number: int, path: str) -> np.ndarray:
    """Places of the records of a file; one row `_DAMAGED` for a rest that cannot be read."""
    rows, start, size = [], 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while start < size:
            file.seek(start)
            header = file.read(_HEADER.size)
            length = _DAMAGED
            if len(header) == _HEADER.size:
                length, crc = _HEADER.unpack(header)
                if crc != masked_crc(header[:_LENGTH_BYTES]):
                    length = _DAMAGED
            end = start + _HEADER.size + length + _FOOTER.size
            if end > size:
                logger.warning("%s is damaged or truncated from byte %d on", path, start)
                rows.append((start, _DAMAGED, number))
                break
            rows.append((start, length, number))
            start = end
    return np.array(rows, _ROW)
