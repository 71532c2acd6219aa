"""Arrow files of Hugging Face's `datasets`, mapped into memory: any row is read without others."""

from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax.data.sources.parquet import (
    arrow_errors,
    check_pyarrow,
    class_names_of,
    first_line,
    image_leaves,
)
from vit_jax.data.sources.table_files import Row
from vit_jax.errors import UserError


class ArrowTable:
    """An Arrow file in the streaming format.

    Attributes:
        columns: names of the columns.
        has_images: whether the column of images contains them, not their paths.
    """

    def __init__(self, path: str) -> None:
        """Maps the file into memory.

        Args:
            path: path of the file.

        Raises:
            UserError: the file is absent, truncated or not Arrow.
            MissingPackageError: pyarrow is not installed.
        """
        self._path, self._table = path, _map(path)
        self.columns: list[str] = self._table.schema.names
        self.has_images = False

    @property
    def schema(self) -> Any:
        """Arrow schema."""
        return self._table.schema

    def rows(self, columns: Sequence[str], image: str) -> Iterator[Row]:
        """Reads the rows, without the bytes of images.

        Args:
            columns: columns that are read.
            image: column of the images. Of images in the file, the path is read.

        Raises:
            UserError: the column contains neither paths nor encoded images.
        """
        from pyarrow import compute, nulls, table

        self.has_images, leaves = image_leaves(self.schema, image, self._path)
        read = {name: self._table[name] for name in columns if name != image}
        if not self.has_images:
            read[image] = self._table[image]
        elif leaves:
            read[image] = compute.struct_field(self._table[image], "path")
        else:
            read[image] = nulls(len(self._table))
        for batch in table(read).to_batches(1024):
            yield from batch.to_pylist()

    def class_names(self, column: str) -> list[str] | None:
        """Names of the classes of a column; None where it has none."""
        return class_names_of(self.schema, column)

    def open_images(self, fs: Any, paths: Sequence[str], column: str) -> "ArrowImages":
        """Opens the images of this and further files, see `ArrowImages`."""
        del fs  # the files are local
        return ArrowImages(paths, column)


class ArrowImages:
    """Encoded images in a column of Arrow files."""

    def __init__(self, paths: Sequence[str], column: str) -> None:
        """Maps the files into memory.

        Args:
            paths: paths of the files.
            column: column of the images, bytes or a struct with `bytes`.
        """
        self._columns = [_map(path)[column] for path in paths]

    def read(self, number: int, row: int) -> bytes | None:
        """Reads an image.

        Args:
            number: number of the file.
            row: row of the file.

        Returns:
            The encoded image; None where the file has none, as where it has the path only.
        """
        value = self._columns[number][row].as_py()
        return value.get("bytes") if isinstance(value, dict) else value


def _map(path: str) -> Any:
    check_pyarrow(path)
    from pyarrow import ipc, memory_map

    try:
        return ipc.open_stream(memory_map(path)).read_all()
    except FileNotFoundError as error:
        raise UserError(f"no file {path!r}") from error
    except arrow_errors() as error:
        raise UserError(f"{path} is not an Arrow file of datasets: {first_line(error)}") from error
