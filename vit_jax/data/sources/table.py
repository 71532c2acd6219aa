"""A table of images: CSV, TSV, JSON lines or Parquet, with captions or labels."""

import collections
import dataclasses
import logging
import posixpath
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import classes, files, patterns, table_files
from vit_jax.data.sources.base import (
    Rows,
    Source,
    brief,
    check_captions,
    check_index,
    label_fields,
    parse_label,
)
from vit_jax.data.sources.parquet import ParquetTable
from vit_jax.errors import UserError, check_name, printable
from vit_jax.paths import is_url

logger = logging.getLogger(__name__)

USUAL = {
    "image": ("image", "path", "image_path", "filepath", "file_name", "file", "img"),
    "caption": ("caption", "captions", "text", "title"),
    "label": ("label", "class", "class_name"),
}
"""Names of columns that are read without being named, by role."""

NONE = "none"
"""Name instead of a column that is not read."""

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class Table(Source):
    """One example per row. Relative paths start at the table's folder.

    Labels are indices or names of classes. The captions of a row may be a list (JSON lines,
    Parquet) or come from several columns. In Parquet, the column of the image may hold the encoded
    images, as bytes or as a struct of `bytes` and `path`, as in data sets of Hugging Face; they
    are read when they are needed. A row that cannot be parsed counts as a broken example. A row
    without a caption or label is an example without it.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            image: column with the paths or URLs of the images, or the images; by default the first
                of image, path, image_path, filepath, file_name, file, img.
            caption: columns of captions; by default the first of caption, captions, text, title.
                "none": no column.
            label: column of labels; by default the first of label, class, class_name. "none": no
                column.
            classes: path or URL of a file with one class name per line, in the order of the labels;
                by default the names in a Parquet file of Hugging Face, or else the labels that
                occur. Labels that are numbers are their own classes, from 0 to the largest one;
                names are sorted.
            delimiter: comma, tab, semicolon or pipe; by default that of the suffix, or the only one
                that the first line has.
        """

        image: str | None = None
        caption: tuple[str, ...] | None = None
        label: str | None = None
        classes: str | None = None
        delimiter: str | None = None

    def __init__(self, config: Config, place: str) -> None:
        """Reads the table, without the images.

        Args:
            config: options of the spec.
            place: path, URL or pattern of .csv, .tsv, .jsonl, .ndjson or .parquet files, see
                `patterns.expand`. All of them have the columns of the first one.

        Raises:
            UserError: no such file or column, another kind of file, no rows.
        """
        self._config = config
        if config.delimiter is not None:
            check_name(config.delimiter, table_files.DELIMITERS, "delimiter")
        fs, paths = patterns.expand(place, _SUFFIXES)
        tables = [_open(fs, path, config.delimiter) for path in paths]
        self._read(fs, place, paths, tables, _choose(config, tables[0].columns, paths[0]))

    def _read(
        self, fs: Any, place: str, paths: list[str], tables: list[Any], columns: "Columns"
    ) -> None:
        """Reads the rows of all files, without the images.

        Args:
            fs: fsspec file system.
            place: name of the source, for messages.
            paths: paths of the files within the file system.
            tables: the opened files.
            columns: columns that are read.
        """
        self._fs, self._place, self._paths = fs, place, paths
        for table, path in zip(tables, paths, strict=True):
            for name in columns.all:
                check_name(name, table.columns, f"column of {path}")
        self._parts = [
            Rows(
                columns.parse(row, table.has_images)
                for row in table.rows(columns.all, columns.image)
            )
            for table in tables
        ]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        if not len(self):
            raise UserError(f"{place} has no rows")
        self._images = (
            tables[0].open_images(fs, paths, columns.image)
            if any(table.has_images for table in tables)
            else None
        )
        labels = self._survey()
        if columns.label:
            given = [classes.read_lines(self._config.classes)] if self._config.classes else []
            given += [names for t in tables if (names := t.class_names(columns.label)) is not None]
            self.class_names = given[0] if given else _class_names(labels, place)
        self._index = {name: i for i, name in reversed([*enumerate(self.class_names or ())])}
        # Numbers are names before they are indices, where a file of the user names the classes.
        self._by_name = self._config.classes is not None

    def _survey(self) -> set[Any]:
        """Logs how many rows are broken; returns the labels that occur."""
        reasons: collections.Counter[str] = collections.Counter()
        labels = set()
        for row in (part[i] for part in self._parts for i in range(len(part))):
            if "broken" in row:
                reasons[row["broken"]] += 1
            else:
                labels.add(row["label"])
        for reason, count in reasons.most_common(1):
            logger.warning(
                "%s: %d of %d rows are broken, %d of them: %s",
                self._place, reasons.total(), len(self), count, printable(reason),
            )  # fmt: skip
        return labels - {None}

    def __len__(self) -> int:
        """See `Source`."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        example, (number, row) = self.annotation(index), self._find(index)
        data = self._images.read(number, row) if self._images else None
        if data is None:
            path = self._parts[number][row]["image"]
            if path is None:
                raise UserError(f"{example['key']}: the image is missing")
            path = self._path(number, path)
            fs, inner = files.file_system(path) if is_url(path) else (self._fs, path)
            data = files.read(fs, inner)
        return {"image": EncodedImage(data, example["key"]), **example}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        number, row = self._find(index)
        stored, where = self._parts[number][row], f"{self._paths[number]}, row {row + 1}"
        if "broken" in stored:
            raise UserError(printable(f"{where}: {stored['broken']}"))
        if (path := stored["image"]) is None:
            key = where
        else:
            key = f"{where}: {path}" if self._images else self._path(number, path)
        example = {"key": printable(key)}
        if stored["captions"]:
            example["captions"] = stored["captions"]
        if self.class_names is not None and (label := stored.get("label")) is not None:
            if isinstance(label, str) or self._by_name:
                label = self._index.get(str(label), label)
            example |= label_fields(label, self.class_names, where)
        return example

    def _path(self, number: int, path: str) -> str:
        """Path of an image, which may be relative to the table."""
        return (
            path if is_url(path) else posixpath.join(posixpath.dirname(self._paths[number]), path)
        )

    def _find(self, index: int) -> tuple[int, int]:
        """Number of the file of an example, and its row there."""
        index = check_index(index, len(self))
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])

    def __reduce__(self) -> tuple:
        """Pickles the spec."""
        return type(self), (self._config, self._place)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of a table that are read.

    Attributes:
        image: column of the images or of their paths.
        captions: columns of captions.
        label: column of the label; None where there is none.
    """

    image: str
    captions: tuple[str, ...]
    label: str | None

    @property
    def all(self) -> list[str]:
        """All of them."""
        return [self.image, *self.captions, *([self.label] if self.label else [])]

    def parse(self, row: table_files.Row, has_images: bool) -> dict[str, Any]:
        """A row as it is stored: its image, captions and label, or the reason why it is broken."""
        if isinstance(row, str):
            return {"broken": row}
        path = row.get(self.image)
        path = path.strip() or None if isinstance(path, str) else path
        if not (isinstance(path, str) or (path is None and has_images)):
            return {"broken": f"{self.image} is {brief(path)}, expected a path"}
        try:
            captions = [
                text for name in self.captions for text in check_captions(row.get(name), "this row")
            ]
        except UserError as error:
            return {"broken": str(error)}
        label = parse_label(row.get(self.label)) if self.label else None
        if label == -1:  # as in test splits of Hugging Face
            label = None
        if isinstance(label, bool | float):
            label = str(label)
        if not isinstance(label, str | int | None):
            return {"broken": f"the label is {brief(label)}, expected a class or its index"}
        return {"image": path, "captions": captions, "label": label}


def _choose(config: Table.Config, columns: list[str], path: str) -> Columns:
    """The given columns, or the first ones with usual names."""
    found: dict[str, tuple[str, ...]] = {}
    given = {
        "image": config.image and (config.image,),
        "caption": config.caption,
        "label": config.label and (config.label,),
    }
    for role, names in given.items():
        if names == (NONE,):
            found[role] = ()
        else:
            found[role] = names or tuple(name for name in USUAL[role] if name in columns)[:1]
        for name in found[role]:
            check_name(name, columns, f"column of {path}")
    if not found["image"]:
        raise UserError(
            printable(f"{path} has the columns {', '.join(columns)[:400] or '(none)'}: ")
            + "name the column of the images' paths, as ?image=COLUMN"
        )
    return Columns(found["image"][0], found["caption"], (*found["label"], None)[0])


def _class_names(found: set[Any], place: str) -> list[str] | None:
    """Names of the classes in the order of their labels; numbers are their own names."""
    numbers = {label for label in found if isinstance(label, int)}
    if numbers == found:
        return classes.numbered(max(found, default=-1), place)
    if numbers:
        logger.warning("%s: some labels are numbers, as %d; they are names", place, min(numbers))
    return classes.sort_names(str(label) for label in found)


def _open(fs: Any, path: str, delimiter: str | None) -> Any:
    suffix = posixpath.splitext(path)[1].lower()
    if suffix == ".parquet":
        return ParquetTable(fs, path)
    if suffix in (".jsonl", ".ndjson"):
        return table_files.open_json_lines(fs, path)
    if suffix in (".csv", ".tsv"):
        return table_files.open_delimited(fs, path, delimiter)
    raise UserError(f"{path}: expected a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file")
