"""A table of images: CSV, TSV, JSON lines or Parquet, with captions or labels."""

import csv
import dataclasses
import io
import json
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files
from vit_jax.data.sources.base import Rows, Source, check_caption, decode_text, label_fields
from vit_jax.data.sources.classes import sort_names
from vit_jax.errors import MissingPackageError, UserError, check_name

_USUAL = {
    "image": ("image", "path", "image_path", "filepath", "file_name", "file"),
    "caption": ("caption", "captions", "text", "title"),
    "label": ("label", "class", "class_name"),
}


class Table(Source):
    """One example per row. Relative paths start at the table's folder.

    Labels are indices or names of classes. The captions of a row may be a list (JSON lines,
    Parquet) or come from several columns. A row that cannot be parsed counts as a broken example.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            image: column with the paths or URLs of the images; by default the first of image, path,
                image_path, filepath, file_name, file.
            caption: columns of captions; by default the first of caption, captions, text, title.
            label: column of labels; by default the first of label, class, class_name.
        """

        image: str | None = None
        caption: tuple[str, ...] | None = None
        label: str | None = None

    def __init__(self, config: Config, place: str) -> None:
        """Reads the table.

        Args:
            config: options of the spec.
            place: path or URL of a .csv, .tsv, .jsonl, .ndjson or .parquet file.

        Raises:
            UserError: no such file or column, another kind of file, no rows.
        """
        path = place
        self._config, self._place = config, place
        self._fs, inner = files.file_system(path)
        if not files.is_file(self._fs, inner):
            raise UserError(f"no table {path}")
        self._path, self._root = inner, posixpath.dirname(inner)
        columns, rows = _read(self._fs, inner)
        images = _columns("image", config.image and (config.image,), columns, path)
        if not images:
            raise UserError(
                f"{path} has the columns {', '.join(columns)}: name the column of the images' "
                "paths, as ?image=COLUMN"
            )
        captions = _columns("caption", config.caption, columns, path)
        classes = _columns("label", config.label and (config.label,), columns, path)
        self._rows = Rows(_example(row, images[0], captions, classes) for row in rows)
        if not len(self._rows):
            raise UserError(f"{path} has no rows")
        self.class_names = (
            _class_names([self._rows[i] for i in range(len(self._rows))]) if classes else None
        )
        self._index = {name: i for i, name in enumerate(self.class_names or ())}

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        example = self.annotation(index)
        path = example["key"]
        fs, inner = files.file_system(path) if "://" in path else (self._fs, path)
        return {"image": EncodedImage(files.read(fs, inner), path), **example}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        row = self._rows[index]
        where = f"{self._path}, row {index % len(self) + 1}"
        if "broken" in row:
            raise UserError(f"{where}: {row['broken']}")
        path = row["image"]
        example = {"key": path if "://" in path else posixpath.join(self._root, path)}
        if captions := row.get("captions"):
            example["captions"] = [check_caption(text, where) for text in captions]
        if self.class_names is not None:
            found = row.get("label")
            label = self._index.get(found) if isinstance(found, str) else found
            example |= label_fields(label, self.class_names, where)
        return example

    def __reduce__(self) -> tuple:
        """Pickles the spec."""
        return Table, (self._config, self._place)


def _example(
    row: dict[str, Any] | str, image: str, captions: Sequence[str], label: Sequence[str]
) -> dict[str, Any]:
    """A row as it is stored: its image, captions and label, or the reason why it is broken."""
    if isinstance(row, str):
        return {"broken": row}
    path = row.get(image)
    if not isinstance(path, str) or not path.strip():
        return {"broken": f"{image} is {path!r}, expected a path"}
    texts: list[Any] = []
    for name in captions:
        value = row.get(name)
        texts += value if isinstance(value, list) else [] if value is None else [value]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        return {"broken": f"a caption is {type(wrong[0]).__name__}, expected text"}
    example = {"image": path.strip(), "captions": texts}
    if label and (value := row.get(label[0])) not in (None, ""):
        example["label"] = _whole_number(value)
    return example


def _whole_number(value: Any) -> Any:
    text = str(value).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


def _class_names(rows: list[dict[str, Any]]) -> list[str]:
    """Names of the classes in the order of their labels; numbers are their own names."""
    found = {row["label"] for row in rows if "label" in row}
    numbers = {label for label in found if isinstance(label, int)}
    if numbers == found:
        return [str(label) for label in range(max(found, default=-1) + 1)]
    if numbers:
        raise UserError(
            f"some labels are names, as {min(found - numbers)!r}, and some are numbers, as "
            f"{min(numbers)}: expected only names or only numbers"
        )
    return sort_names(found)


def _columns(
    role: str, given: Sequence[str] | None, columns: list[str], path: str
) -> Sequence[str]:
    """The given columns, or the first one with a usual name."""
    if given:
        for name in given:
            check_name(name, columns, f"column of {path}")
        return given
    return [name for name in _USUAL[role] if name in columns][:1]


def _read(fs: Any, path: str) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Reads column names and rows; instead of a broken row, the reason."""
    suffix = posixpath.splitext(path)[1].lower()
    if suffix == ".parquet":
        return _read_parquet(fs, path)
    if suffix not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        raise UserError(f"{path}: expected a .csv, .tsv, .jsonl, .ndjson or .parquet file")
    if suffix in (".jsonl", ".ndjson"):
        lines = [line for line in files.read(fs, path).splitlines() if line.strip()]
        rows = [_json_row(line) for line in lines]
        names = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
        return list(names), iter(rows)
    text = io.StringIO(decode_text(files.read(fs, path), path), newline="")
    reader = csv.reader(text, delimiter="\t" if suffix == ".tsv" else ",")
    header = next(reader, [])
    return header, _csv_rows(reader, header)


def _csv_rows(reader: Iterator[list[str]], header: list[str]) -> Iterator[dict[str, Any] | str]:
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


def _json_row(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"{type(row).__name__}, expected a JSON object"


def _read_parquet(fs: Any, path: str) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingPackageError(
            f"{path} needs pyarrow: run `pip install 'vit_jax[parquet]'`"
        ) from error
    try:
        file = parquet.ParquetFile(fs.open(path, "rb"))
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is not Parquet: {error}") from error
    batches = file.iter_batches()
    return file.schema_arrow.names, (row for batch in batches for row in batch.to_pylist())
