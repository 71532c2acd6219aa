"""Base class of data sources, and functions that several of them share."""

import abc
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from vit_jax.errors import UserError


class Source(abc.ABC):
    """Random access to examples.

    An example is a dict. `image` is an `images.EncodedImage` or, where it is already decoded, uint8
    (H, W, 3) or (H, W, 4) with alpha. Optional fields: `label`, an index of `class_names`; `name`,
    the name of that class; `captions`, a list with the canonical caption first; `key`, the name of
    the example in messages. Examples may share arrays: copy an image before writing into it. An
    example that cannot be read raises UserError; its neighbours can still be read.

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
        UserError: the example has neither captions nor a class name.
    """
    captions = example.get("captions") or [example.get("name")]
    if captions == [None]:
        raise UserError(f"no captions and no name among the fields {sorted(example)}")
    return captions


def check_index(index: int, count: int) -> int:
    """Converts an index that may count from the end to one that counts from 0.

    Raises:
        IndexError: the index is out of range.
    """
    if not -count <= index < count:
        raise IndexError(f"example {index} of {count}")
    return index % count


def check_caption(text: Any, where: str) -> str:
    """Checks that a caption is Unicode text, without halves of surrogate pairs.

    Args:
        text: the caption.
        where: name of the example, for messages.

    Raises:
        UserError: the caption is no text.
    """
    if not isinstance(text, str):
        raise UserError(f"the caption of {where} is {type(text).__name__}, expected text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the caption of {where} is not Unicode text: {error.reason}") from error
    return text


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


def label_fields(label: Any, names: list[str] | None, where: str) -> dict[str, Any]:
    """The fields `label` and, where classes have names, `name` of an example.

    Args:
        label: index of the class.
        names: names of the classes.
        where: name of the example, for messages.

    Raises:
        UserError: the label is no index of a class.
    """
    if not isinstance(label, int | np.integer) or isinstance(label, bool) or label < 0:
        raise UserError(f"the label of {where} is {label!r}, expected an index of a class")
    if names is None:
        return {"label": int(label)}
    if label >= len(names):
        raise UserError(f"the label of {where} is {label}, but there are {len(names)} classes")
    return {"label": int(label), "name": names[int(label)]}
