"""Parquet tables: annotations by column, and encoded images, read row by row when needed."""

import collections
import functools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vit_jax.data.sources import files
from vit_jax.data.sources.table_files import Row
from vit_jax.errors import MissingPackageError, UserError

_BATCH_BYTES = 32 << 20  # images that are decompressed at once
_KEPT = 2  # batches in memory
_OPEN = 16  # files that stay open
_NO_BATCHES = (-1, 0, 0, iter(()))


class ParquetTable:
    """A Parquet file.

    Attributes:
        schema: Arrow schema.
        columns: names of the columns.
        has_images: whether the column of images contains them, not their paths.
    """

    def __init__(self, fs: Any, path: str) -> None:
        """Reads the metadata.

        Args:
            fs: fsspec file system.
            path: path within it.

        Raises:
            UserError: the file is not Parquet.
            MissingPackageError: pyarrow is not installed.
        """
        self._path, self._file = path, _open(fs, path)
        self.schema = self._file.schema_arrow
        self.columns: list[str] = self.schema.names
        self.has_images = False

    def rows(self, columns: Sequence[str], image: str) -> Iterator[Row]:
        """Reads the rows, once.

        Args:
            columns: columns that are read.
            image: column of the images. Of images in the file, the path is read.

        Raises:
            UserError: the column contains neither paths nor encoded images.
        """
        self.has_images, leaves = image_leaves(self.schema, image, self._path)
        columns = [*leaves, *(name for name in columns if name != image)]
        for group in range(self._file.num_row_groups):
            count, done = self._file.metadata.row_group(group).num_rows, 0
            try:
                batches = self._file.iter_batches(
                    1024, row_groups=[group], columns=columns, use_threads=False
                )
                for batch in batches if columns else ():
                    for row in batch.to_pylist():
                        if isinstance(found := row.get(image), dict):
                            row[image] = found.get("path")
                        yield row
                        done += 1
            except arrow_errors() as error:
                reason = f"row group {group} cannot be read: {first_line(error)}"
                yield from [reason] * (count - done)
                continue
            yield from ({} for _ in range(count - done))

    def class_names(self, column: str) -> list[str] | None:
        """Names of the classes of a column in a file of Hugging Face; None in other files."""
        return class_names_of(self.schema, column)

    def open_images(self, fs: Any, paths: Sequence[str], column: str) -> "ParquetImages":
        """Opens the images of this and further files, see `ParquetImages`."""
        return ParquetImages(fs, paths, column)


def class_names_of(schema: Any, column: str) -> list[str] | None:
    """Names of the classes of a column in a file of Hugging Face; None in other files.

    Args:
        schema: Arrow schema.
        column: column of the label.
    """
    names = features_of(schema).get(column, {}).get("names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
    """Features of the columns in a file of Hugging Face; empty in other files.

    Args:
        schema: Arrow schema, whose metadata holds them.
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def image_leaves(schema: Any, column: str, path: str) -> tuple[bool, list[str]]:
    """Finds the parts of a column of images that are read with the annotations.

    Args:
        schema: Arrow schema.
        column: column of the images or of their paths.
        path: path of the file, for messages.

    Returns:
        Whether the column contains encoded images, and the columns with their paths; none where it
        contains bytes only.

    Raises:
        UserError: the column contains neither paths nor encoded images.
    """
    from pyarrow import types

    kind = schema.field(column).type
    kind = getattr(kind, "storage_type", kind)
    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(value) or types.is_large_string(value) or types.is_null(value):
        return False, [column]
    if _is_binary(kind):
        return True, []
    if types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        if "bytes" in fields and _is_binary(fields["bytes"]):
            return True, [f"{column}.path"] if "path" in fields else []
    raise UserError(
        f"{path}: the column {column} is {str(kind)[:80]}, expected paths, images as binary, or a "
        "struct of bytes and path"
    )


class ParquetImages:
    """Encoded images in a column of Parquet files.

    A row group is decompressed in batches, of which the newest are kept, so that memory is bounded
    and reading in order is fast. An image out of order takes reading its row group up to it.
    """

    def __init__(self, fs: Any, paths: Sequence[str], column: str) -> None:
        """Stores the arguments.

        Args:
            fs: fsspec file system.
            paths: paths within it.
            column: column of the images, bytes or a struct with `bytes`.
        """
        self._paths, self._column = paths, column
        self._file = functools.lru_cache(_OPEN)(lambda number: _open(fs, paths[number]))
        self._lock = threading.Lock()
        # (file, first row, values) of the newest batches, and those that follow the last one.
        self._batches: collections.deque[tuple[int, int, Any]] = collections.deque(maxlen=_KEPT)
        self._next: tuple[int, int, int, Iterator[Any]] = _NO_BATCHES

    def read(self, number: int, row: int) -> bytes | None:
        """Reads an image.

        Args:
            number: number of the file.
            row: row of the file.

        Returns:
            The encoded image; None where the file has none, as where it has the path only.

        Raises:
            UserError: the row group is damaged.
        """
        with self._lock:
            try:
                value = self._find(number, row)
            except arrow_errors() as error:
                self._next = _NO_BATCHES
                where = f"{self._paths[number]}: cannot read row {row + 1}"
                raise UserError(f"{where}: {first_line(error)}") from None
        return value.get("bytes") if isinstance(value, dict) else value

    def _find(self, number: int, row: int) -> Any:
        from pyarrow import default_memory_pool

        for file, first, values in self._batches:
            if file == number and first <= row < first + len(values):
                return values[row - first].as_py()
        metadata = self._file(number).metadata
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        ends = np.cumsum(counts)
        group = int(np.searchsorted(ends, row, side="right"))
        file, opened, position, batches = self._next
        if (file, opened) != (number, group) or row < position:
            # Frees the dictionary of the values, which may be large.
            self._next = _NO_BATCHES
            del batches
            default_memory_pool().release_unused()
            position = int(ends[group]) - counts[group]
            size = max(1, metadata.row_group(group).total_byte_size // max(1, counts[group]))
            batches = self._file(number).iter_batches(
                max(1, min(counts[group], _BATCH_BYTES // size)),
                row_groups=[group],
                columns=[self._column],
                use_threads=False,
            )
        while True:
            values = next(batches, None)
            if values is None:
                raise ValueError("the row group ends before it")
            values = values.column(0)
            self._batches.append((number, position, values))
            self._next = (number, group, position + len(values), batches)
            if row < position + len(values):
                return values[row - position].as_py()
            position += len(values)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def first_line(error: Exception) -> str:
    """First line of a message of pyarrow, shortened."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def arrow_errors() -> tuple[type[Exception], ...]:
    """Exceptions of pyarrow on damaged files."""
    from pyarrow import ArrowException

    return ArrowException, OSError, ValueError


def check_pyarrow(path: str) -> None:
    """Checks that pyarrow is installed.

    Args:
        path: path of the file that needs it.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"{path} needs pyarrow: run `pip install 'vit_jax[parquet]'`"
        ) from error


def _open(fs: Any, path: str) -> Any:
    check_pyarrow(path)
    from pyarrow import parquet

    with files.explained(fs, path):
        file = path if files.is_local(fs) else fs.open(path, "rb")
    try:
        return parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except arrow_errors() as error:
        raise UserError(f"{path} is not Parquet: {first_line(error)}") from None
