"""Bare ArrayRecord files, as `python -m vit_jax.data.prepare` writes them.

A record is one MessagePack map, which any language reads and no reader executes:

    image      bytes   the encoded image (JPEG, PNG, WebP, ...)
    captions   [str]   optional, the canonical one first
    label      int     optional, index of the class
    key        str     names the example in messages
    ...                any other fields of the example that are text, numbers or lists of them

The files are written with `group_size:1`, so that a record is read without its neighbours.
"""

import posixpath
from typing import Any

import msgpack
import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files, manifest
from vit_jax.data.sources.base import check_caption, labelled
from vit_jax.errors import UserError

WRITER_OPTIONS = "group_size:1"
LABELS_NAME = "labels.npy"


class ArrayRecords:
    """Examples of one or many ArrayRecord files; random access."""

    def __init__(self, pattern: str, classes: str | None = None) -> None:
        """Args: pattern, of the files, see `files.expand`; classes, a file of names, one a line.

        Raises:
          UserError: no file, one that is damaged or in a bucket, records of another format.
        """
        from array_record.python import array_record_data_source

        fs, self._paths = files.expand(pattern)
        if not files.is_local(fs):
            raise UserError(f"{pattern}: ArrayRecord is read from local disks; mount the bucket")
        self._spec = (pattern, classes)
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(self._paths)
            count = len(self._records)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{pattern} is not ArrayRecord: {str(error).splitlines()[0]}") from None
        if not count:
            raise UserError(f"{pattern} has no records")
        self.class_names = manifest.class_names(fs, self._paths, classes)
        self._fs = fs
        _unpack(self._records[0], f"{pattern}, record 0")

    @property
    def labels(self) -> np.ndarray | None:
        if self.class_names is None:
            return None
        kept = posixpath.join(posixpath.dirname(self._paths[0]), LABELS_NAME)
        if self._fs.isfile(kept) and len(found := np.load(kept, allow_pickle=False)) == len(self):
            return found.astype(np.int64)
        return np.array([self.annotation(i)["label"] for i in range(len(self))], np.int64)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, where = self._read(index)
        return {
            "image": EncodedImage(record.pop("image"), where),
            **self._annotation(record, where),
        }

    def annotation(self, index: int) -> dict[str, Any]:
        record, where = self._read(index)
        del record["image"]
        return self._annotation(record, where)

    def _annotation(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        for caption in record.get("captions", ()):
            check_caption(caption, where)
        if "label" in record:
            record |= labelled(record["label"], self.class_names, where)
        return record

    def _read(self, index: int) -> tuple[dict[str, Any], str]:
        where = f"{self._spec[0]}, record {index}"
        try:
            data = self._records[index]
        except (RuntimeError, ValueError) as error:
            raise UserError(f"cannot read {where}: {error}") from error
        record = _unpack(data, where)
        return record, f"{where}: {record.get('key', '')}"

    def __reduce__(self) -> tuple:
        return ArrayRecords, self._spec


def pack(example: dict[str, Any], image: bytes) -> bytes:
    """One record. Args: example, without its image; image, the encoded image."""
    return msgpack.packb({"image": image, **example})


def _unpack(data: bytes, where: str) -> dict[str, Any]:
    try:
        record = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise _foreign(where) from error
    if not isinstance(record, dict) or not isinstance(record.get("image"), bytes):
        raise _foreign(where)
    return record


def _foreign(where: str) -> UserError:
    return UserError(
        f"{where} is not an example: expected MessagePack as data.prepare writes it; sets prepared "
        "by TFDS are opened with tfds:"
    )
