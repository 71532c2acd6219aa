"""Base class of data sources, and functions that several of them share."""

import abc
import dataclasses
import json
import math
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from vit_jax.errors import UserError

_NAN_TEXTS = {"", "nan", "<na>"}  # as pandas writes missing values


class Source(abc.ABC):
    """Random access to examples.

    An example is a dict. `image` is an `images.EncodedImage` or, where it is already decoded, uint8
    (H, W, 3) or (H, W, 4) with alpha; `images.read_image` lists what else it may be. Optional
    fields: `label`, an index of `class_names`; `name`, the name of that class; `captions`, a list
    with the canonical caption first; `key`, the name of the example in messages; `boxes`, `names`
    and others where there are boxes, see `data.detection`. Examples may share arrays: copy an image
    before writing into it. An example that cannot be read raises UserError; its neighbours can
    still be read.

    A subclass of another package is opened by its name: `my_project.data:Clouds:train?size=3` calls
    `Clouds(Clouds.Config(size=3), "train")`. Sources are pickled for reader processes, so large
    ones define `__reduce__`.

    Attributes:
        class_names: one name per label; None where there are no classes.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec."""

    class_names: list[str] | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads an example.

        Raises:
            IndexError: there is no such example.
            UserError: the example cannot be read.
        """

    def annotation(self, index: int) -> dict[str, Any]:
        """Reads an example without its image, where possible without decoding it."""
        return {key: value for key, value in self[index].items() if key != "image"}

    def draw_row(self, rng: np.random.Generator) -> int:
        """Draws the index of an example, each as often as in training."""
        return int(rng.integers(len(self)))

    @property
    def labels(self) -> Int64[np.ndarray, " examples"] | None:
        """Label of every example, read when first needed; None where there are no classes."""
        if self.class_names is None:
            return None
        return np.array([_label(self.annotation(i), i) for i in range(len(self))], np.int64)


def _label(example: dict[str, Any], index: int) -> int:
    if "label" not in example:
        raise UserError(f"{example.get('key', f'example {index}')} has no label")
    return example["label"]


class Subset(Source):
    """Some of another source's examples, with the classes of the whole."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        """Stores the arguments.

        Args:
            source: the whole source.
            indices: its examples that are taken.
        """
        self._source, self._indices = source, indices
        self.class_names = source.class_names

    @property
    def labels(self) -> Int64[np.ndarray, " examples"] | None:
        """See `Source`."""
        whole = self._source.labels
        return None if whole is None else whole[np.asarray(self._indices)]

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        return self._source[self._indices[index]]

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        return self._source.annotation(self._indices[index])


class Rows:
    """Small JSON values, packed into one object.

    The garbage collector walks a list of millions of Python objects, and their reference counts
    make every forked process copy it page by page.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        """Packs values.

        Args:
            values: JSON values.
        """
        lines = [json.dumps(value, separators=(",", ":")).encode() for value in values]
        self._data = b"".join(lines)
        self._ends = np.cumsum([len(line) for line in lines], dtype=np.int64)

    def __len__(self) -> int:
        """Number of values."""
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        """One value."""
        index = check_index(index, len(self))
        start = self._ends[index - 1] if index else 0
        return json.loads(self._data[start : self._ends[index]])


def captions_of(example: dict[str, Any]) -> list[str]:
    """Captions of an example, the canonical one first; its class name where it has none.

    Raises:
        UserError: the example has neither captions nor a class name, or captions that are no texts.
    """
    where = str(example.get("key", "an example"))
    captions = check_captions(example.get("captions"), where)
    if not captions and isinstance(name := example.get("name"), str):
        captions = [name]
    if not captions:
        raise UserError(f"{where} has no captions and no name among the fields {sorted(example)}")
    return captions


def check_index(index: int, count: int) -> int:
    """Converts an index that may count from the end to one that counts from 0.

    Raises:
        IndexError: the index is out of range.
    """
    if not -count <= index < count:
        raise IndexError(f"example {index} of {count}")
    return index % count


def check_captions(value: Any, where: str) -> list[str]:
    """Converts the captions of an example, as users store them, to a list.

    Args:
        value: a text or a list of texts, as str or UTF-8 bytes. Missing ones are left out: None,
            NaN, texts without any letter, and `nan`, which pandas writes for them.
        where: name of the example, for messages.

    Raises:
        UserError: a caption is no text, or not Unicode.
    """
    texts = value if isinstance(value, list | tuple | np.ndarray) else [value]
    found = [_text(text, where) for text in texts if not is_missing(text)]
    return [text for text in found if text.strip() and text.strip().lower() not in _NAN_TEXTS]


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN, which stand for missing values in tables."""
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _text(value: Any, where: str) -> str:
    if isinstance(value, bytes):
        return decode_text(value, f"the caption of {where}")
    if not isinstance(value, str):
        raise UserError(f"the caption of {where} is {brief(value)}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the caption of {where} is not Unicode text: {error.reason}") from error
    return value


def brief(value: Any) -> str:
    """Type and beginning of a value of a user's file, for messages; without bytes of images."""
    if isinstance(value, bytes | dict | list | np.ndarray):
        return f"{type(value).__name__} of length {len(value)}"
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def decode_text(data: bytes, where: str) -> str:
    """Decodes UTF-8 text and drops a byte order mark.

    Args:
        data: encoded text.
        where: name of the text, for messages.

    Raises:
        UserError: the data is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: byte {error.start}, {error.reason}") from error


def parse_label(value: Any) -> Any:
    """Converts a label as users store it: text of digits and integral floats become integers.

    Args:
        value: a label; text that is not a number is the name of a class.

    Returns:
        An integer or text; None for missing labels, that is, None, NaN, and empty text; values of
        other types are returned unchanged.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        value = value.strip()
        is_number = value.isascii() and value.isdigit() and len(value) < 10
        return int(value) if is_number else None if value.lower() in _NAN_TEXTS else value
    if is_missing(value):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    return value


def label_fields(label: Any, names: Sequence[str] | None, where: str) -> dict[str, Any]:
    """The fields `label` and, where classes have names, `name` of an example.

    Args:
        label: index or name of the class, see `parse_label`.
        names: names of the classes.
        where: name of the example, for messages.

    Raises:
        UserError: the label is no class.
    """
    label = parse_label(label)
    if isinstance(label, str) and label in (names or ()):
        label = list(names or ()).index(label)
    if not isinstance(label, int | np.integer) or isinstance(label, bool) or label < 0:
        raise UserError(f"the label of {where} is {brief(label)}, expected a class or its index")
    if names is None:
        return {"label": int(label)}
    if label >= len(names):
        raise UserError(f"the label of {where} is {label}, but there are {len(names)} classes")
    return {"label": int(label), "name": names[int(label)]}
