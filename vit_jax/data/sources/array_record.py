"""ArrayRecord files that `python -m vit_jax.data.prepare` writes.

A record is one MessagePack map:

    image      bytes   the encoded image (JPEG, PNG, WebP, ...)
    captions   [str]   optional, the canonical one first
    label      int     optional, index of the class
    key        str     name of the example in messages
    ...                other fields of the example: text, numbers or lists of them

The files are written with `group_size:1`, so that a record can be read without its neighbours.
"""

import dataclasses
import posixpath
from typing import Any

import msgpack
import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files, manifest, patterns
from vit_jax.data.sources.base import Source, check_captions, label_fields
from vit_jax.errors import UserError, printable

WRITER_OPTIONS = "group_size:1"
LABELS_NAME = "labels.npy"


class ArrayRecords(Source):
    """Examples of one or several ArrayRecord files."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            classes: path or URL of a file with one class name per line; by default the names in
                the manifest beside the first file.
        """

        classes: str | None = None

    def __init__(self, config: Config, place: str) -> None:
        """Opens the files.

        Args:
            config: options of the spec.
            place: pattern of the files, see `patterns.expand`.

        Raises:
            UserError: no such file, a damaged one, one in a bucket, records of another format.
        """
        from array_record.python import array_record_data_source

        pattern = place
        fs, self._paths = patterns.expand(pattern, (".array_record", ".arrayrecord"))
        if not files.is_local(fs):
            raise UserError(f"{pattern}: ArrayRecord needs a local disk; mount the bucket")
        self._config, self._pattern = config, pattern
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(self._paths)
            count = len(self._records)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{pattern} is not ArrayRecord: {str(error).splitlines()[0]}") from None
        if not count:
            raise UserError(f"{pattern} has no records")
        self.class_names = manifest.class_names(fs, self._paths, config.classes)
        self._fs = fs
        _unpack(self._records[0], f"{pattern}, record 0")

    @property
    def labels(self) -> np.ndarray | None:
        """See `Source`; `data.prepare` writes them in a file of their own."""
        if self.class_names is None:
            return None
        folder = posixpath.dirname(self._paths[0])
        kept, whole = posixpath.join(folder, LABELS_NAME), manifest.load(self._fs, folder)
        # They are those of all shards, in their order.
        names = [posixpath.join(folder, name) for name in (whole["shards"] if whole else ())]
        if self._paths == names and self._fs.isfile(kept):
            return np.load(kept, allow_pickle=False).astype(np.int64)
        return super().labels

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        record, where = self._read(index)
        return {
            "image": EncodedImage(record.pop("image"), where),
            **self._annotation(record, where),
        }

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        record, where = self._read(index)
        del record["image"]
        return self._annotation(record, where)

    def _annotation(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        if "captions" in record:
            record["captions"] = check_captions(record["captions"], where)
        record["key"] = printable(str(record.get("key", where)))
        if "label" in record:
            record |= label_fields(record["label"], self.class_names, where)
        return record

    def _read(self, index: int) -> tuple[dict[str, Any], str]:
        where = f"{self._pattern}, record {index}"
        try:
            data = self._records[index]
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"cannot read {where}: {error}") from error
        record = _unpack(data, where)
        return record, printable(f"{where}: {record.get('key', '')}")

    def __reduce__(self) -> tuple:
        """Pickles the spec."""
        return ArrayRecords, (self._config, self._pattern)


def pack(example: dict[str, Any], image: bytes) -> bytes:
    """Builds one record.

    Args:
        example: fields of the example, without its image.
        image: the encoded image.
    """
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
        f"{where} is not an example: expected a file of vit_jax.data.prepare; data sets prepared "
        "by TFDS are opened with tfds:"
    )
