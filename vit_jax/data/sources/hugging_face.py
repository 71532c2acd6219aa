"""Data sets of Hugging Face on a local disk, without its libraries and without network."""

import dataclasses
import logging
from typing import Any

import fsspec

from vit_jax.data.sources import hugging_face_files
from vit_jax.data.sources.arrow import ArrowTable
from vit_jax.data.sources.parquet import ParquetTable, features_of
from vit_jax.data.sources.table import NONE, USUAL, Columns, Table
from vit_jax.errors import UserError, check_name, printable

logger = logging.getLogger(__name__)


class HuggingFace(Table):
    """A split of a data set. Images stay in its files until they are read.

    Columns are those of the features `Image` and `ClassLabel`, and a text with a usual name. Where
    several columns may be meant, one has to be named.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            config: configuration of the data set; by default the only one.
            split: split; by default the only one.
            image: column of the images; by default the only `Image`.
            caption: columns of captions, texts or lists of texts; by default the only one that is
                called caption, captions, text or title. "none": no column.
            label: column of labels; by default the only `ClassLabel`, or else the only column that
                is called label, class or class_name. "none": no column.
            classes: path or URL of a file with one class name per line, in the order of the labels;
                by default the names of the `ClassLabel`.
        """

        config: str | None = None
        split: str | None = None
        image: str | None = None
        caption: tuple[str, ...] | None = None
        label: str | None = None
        classes: str | None = None

    def __init__(self, config: Config, place: str) -> None:
        """Reads the annotations.

        Args:
            config: options of the spec.
            place: folder of the data set, or its name in a cache, see `hugging_face_files`.

        Raises:
            UserError: no such data set, split or column, one that has to be chosen, no rows.
            MissingPackageError: pyarrow is not installed.
        """
        self._config = config  # type: ignore[assignment]  # a table without a delimiter
        fs = fsspec.filesystem("file")
        paths = hugging_face_files.find(place, config.config, config.split)
        tables: list[Any] = [
            ParquetTable(fs, path) if path.endswith(".parquet") else ArrowTable(path)
            for path in paths
        ]
        self._read(fs, place, paths, tables, _choose(config, tables[0].schema, place))


def _choose(config: HuggingFace.Config, schema: Any, place: str) -> Columns:
    """The given columns, or those that can only be meant."""
    features, names = features_of(schema), list(schema.names)
    kinds = {name: _kind(schema.field(name).type, features.get(name)) for name in names}
    images = [name for name in names if kinds[name] == "image"]
    classes = [name for name in names if kinds[name] == "class"]
    texts = [name for name in names if kinds[name] == "text"]
    captions = [name for name in USUAL["caption"] if name in texts]
    given = {
        "image": (config.image and (config.image,), images),
        "caption": (config.caption, captions),
        "label": (
            config.label and (config.label,),
            classes or [name for name in USUAL["label"] if name in names],
        ),
    }
    found = {}
    for role, (chosen, possible) in given.items():
        if chosen is None and len(possible) > 1:
            raise UserError(
                printable(f"{place} has the columns {', '.join(possible)}: ")
                + f"choose one, as ?{role}={possible[0]}"
                + (f", or {role}={NONE}" if role != "image" else "")
            )
        found[role] = () if chosen == (NONE,) else tuple(chosen or possible)
        for name in found[role]:
            check_name(name, names, f"column of {place}")
    if not found["image"]:
        raise UserError(
            printable(f"{place} has the columns {', '.join(names)[:400]}: ")
            + "none holds images; name the column of their paths, as ?image=COLUMN"
        )
    if texts and not found["caption"] and not found["label"]:
        logger.info(
            "%s: the texts %s are not read; ?caption=COLUMN reads one",
            place, printable(", ".join(texts)),
        )  # fmt: skip
    return Columns(found["image"][0], found["caption"], (*found["label"], None)[0])


def _kind(kind: Any, feature: dict[str, Any] | None) -> str:
    """Returns "image", "class", "text" or "", by the feature or else by Arrow's type."""
    from pyarrow import types

    name = (feature or {}).get("_type")
    if name in ("Image", "ClassLabel"):
        return "image" if name == "Image" else "class"
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    has_bytes = types.is_struct(kind) and "bytes" in [field.name for field in kind]
    return "image" if has_bytes and name is None else ""
