"""Rows of CSV, TSV and JSON lines. Instead of a broken row, the reason why it is broken."""

import csv
import io
import json
import logging
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vit_jax.data.sources import files
from vit_jax.errors import UserError, printable

logger = logging.getLogger(__name__)

DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}

Row = dict[str, Any] | str
"""Values by column, or the reason why the row is broken."""


class TextTable:
    """A file of JSON lines, CSV or TSV.

    Attributes:
        columns: names of the columns.
        has_images: whether the column of images contains them; never in text.
    """

    has_images = False

    def __init__(self, columns: list[str], rows: Iterable[Row]) -> None:
        """Stores the arguments.

        Args:
            columns: names of the columns.
            rows: the rows.
        """
        self.columns, self._rows = columns, rows

    def rows(self, columns: Sequence[str], image: str) -> Iterator[Row]:
        """Reads the rows, once.

        Args:
            columns: columns that are read.
            image: column of the images.
        """
        del columns, image  # rows of text are read whole
        yield from self._rows

    def class_names(self, column: str) -> list[str] | None:
        """Names of the classes of a column; None, because text has none."""
        del column
        return None


def open_json_lines(fs: Any, path: str) -> TextTable:
    """Reads JSON lines.

    Args:
        fs: fsspec file system.
        path: path within it.
    """
    rows = [_json_row(line) for line in files.read(fs, path).split(b"\n") if line.strip()]
    names = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
    return TextTable(list(names), rows)


def open_delimited(fs: Any, path: str, delimiter: str | None) -> TextTable:
    """Reads CSV or TSV.

    Args:
        fs: fsspec file system.
        path: path within it.
        delimiter: a key of `DELIMITERS`; None: tab for .tsv and comma for .csv, or, where the first
            line has none, the only other one of them that it has, which is logged.

    Raises:
        UserError: the file is UTF-16, or two columns have the same name.
    """
    data = files.read(fs, path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16, expected UTF-8")
    # Bytes that are not UTF-8 are kept: they break their own row only, and file names have them.
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    separator = DELIMITERS[delimiter] if delimiter else _separator(path, text.partition("\n")[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{path}: the first line has no names of columns: {error}") from error
    if twice := [name for i, name in enumerate(header) if name and name in header[:i]]:
        raise UserError(f"{path} has two columns {printable(twice[0])!r}")
    return TextTable(header, _csv_rows(reader, header))


def _separator(path: str, line: str) -> str:
    own = "\t" if posixpath.splitext(path)[1].lower() == ".tsv" else ","
    others = [(name, char) for name, char in DELIMITERS.items() if char != own and char in line]
    if own in line or len(others) != 1:
        return own
    logger.warning("%s is separated by %s: its first line has no %r", path, others[0][0], own)
    return others[0][1]


def _csv_rows(reader: Iterator[list[str]], header: list[str]) -> Iterator[Row]:
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield str(error)
            continue
        if len(row) == len(header):
            yield dict(zip(header, row, strict=True))
        elif row:  # not an empty line
            yield f"{len(row)} fields, expected {len(header)}"


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"{type(row).__name__}, expected a JSON object"
