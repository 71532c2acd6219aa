"""What every source is, and what their modules share."""

import json
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from vit_jax.errors import UserError


class Source(Protocol):
    """Random access to examples. Examples are shared: copy an image before writing into it.

    An example has `image`, a `images.EncodedImage` or, where it is decoded already, uint8 (H, W, 3) or
    (H, W, 4) with transparency. Where the data have them: `label`, int; `name`, that of its class;
    `captions`, list[str], the canonical one first; `key`, which names the example in messages.
    An example that cannot be read raises UserError, which names it; its neighbours are not harmed.

    Attributes:
      class_names: one name for each label, None where there are no classes.
      labels: (N,) int64, the label of every example without decoding images, or None. Sources
        that must read the data for it do so when it is first asked for.
    """

    @property
    def class_names(self) -> list[str] | None: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def annotation(self, index: int) -> dict[str, Any]:
        """The example without `image`, at no image's decoding."""
        ...


class Subset:
    """A range of another source's examples; the classes stay those of the whole."""

    def __init__(self, source: Source, indices: range) -> None:
        self._source, self._indices = source, indices
        self.class_names = source.class_names

    @property
    def labels(self) -> np.ndarray | None:
        whole = self._source.labels
        return None if whole is None else whole[self._indices.start : self._indices.stop]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._indices[index]]

    def annotation(self, index: int) -> dict[str, Any]:
        return self._source.annotation(self._indices[index])


class Rows:
    """Small JSON values, packed: one object for the garbage collector however many there are.

    A list of millions of Python objects is walked by the collector and, by its reference counts,
    copied page by page into every forked process.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        lines = [json.dumps(value, separators=(",", ":")).encode() for value in values]
        self._data = b"".join(lines)
        self._ends = np.cumsum([len(line) for line in lines], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        index = check_index(index, len(self))
        start = self._ends[index - 1] if index else 0
        return json.loads(self._data[start : self._ends[index]])


def check_index(index: int, count: int) -> int:
    """An index from 0, of one that may count from the end."""
    if not -count <= index < count:
        raise IndexError(f"example {index} of {count}")
    return index % count


def check_caption(text: Any, where: str) -> str:
    """Refuses a caption that is no text or, as half a surrogate pair, no Unicode."""
    if not isinstance(text, str):
        raise UserError(f"the caption of {where} is {type(text).__name__}, expected text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the caption of {where} is not Unicode text: {error.reason}") from error
    return text


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 text, without the mark that some editors put in front."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: byte {error.start}, {error.reason}") from error


def labelled(label: Any, names: list[str] | None, where: str) -> dict[str, Any]:
    """`label`, and `name` where classes have names."""
    if not isinstance(label, int | np.integer) or isinstance(label, bool) or label < 0:
        raise UserError(f"the label of {where} is {label!r}, expected an index of a class")
    if names is None:
        return {"label": int(label)}
    if label >= len(names):
        raise UserError(f"the label of {where} is {label}, but there are {len(names)} classes")
    return {"label": int(label), "name": names[int(label)]}
