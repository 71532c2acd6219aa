"""Tensors that are still in their file."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from vit_jax.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read from its file on request.

    Attributes:
        shape: shape of the tensor.
        dtype: NumPy dtype, or one of ml_dtypes (bfloat16, 8-bit floats).
        load: reads the tensor into memory; each call reads the file again.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


class TensorFile:
    """A mapping from names to tensors that are read on request.

    If all names start with `module.` (torch's data-parallel wrapper), the prefix is removed.
    """

    def __init__(
        self,
        path: pathlib.Path,
        tensors: Mapping[str, LazyTensor],
        metadata: Mapping[str, str] | None = None,
        part: str | None = None,
        *,
        beside: Collection[str] = (),
        parts: Sequence[str] = (),
    ) -> None:
        """Initializes the file.

        Args:
            path: path of the file, for messages.
            tensors: tensors by name.
            metadata: strings in the header of a safetensors file.
            part: key of a checkpoint dict, or prefix of names, that the tensors were taken from;
                None for the whole file.
            beside: names of tensors that lie outside of `part`; a model may use them or not.
            parts: keys of a checkpoint with several dicts of tensors; they are the first
                components of the names.
        """
        self.path, self.metadata, self.part = path, dict(metadata or {}), part
        self.beside, self.parts = frozenset(beside), tuple(parts)
        if tensors and all(key.startswith("module.") for key in tensors):
            tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
        self._tensors = dict(tensors)

    def __str__(self) -> str:
        return str(self.path) + (f" (key {self.part!r})" if self.part else "")

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def keys(self) -> list[str]:
        """Returns the names in the order of the file."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self.tensor(key).shape

    def dtype(self, key: str) -> np.dtype:
        """Returns the dtype of a tensor; bfloat16 and 8-bit floats are those of ml_dtypes."""
        return self.tensor(key).dtype

    def read(self, key: str) -> np.ndarray:
        """Reads one tensor into newly allocated memory."""
        return self.tensor(key).load()

    def tensor(self, key: str) -> LazyTensor:
        """Returns a tensor without reading it.

        Raises:
            UserError: no tensor of that name; the nearest name is given.
        """
        if key not in self._tensors:
            raise UserError(f"{self}: {unknown(key, self._tensors, 'tensor')}")
        return self._tensors[key]

    def renamed(self, rename: Callable[[str], str | None]) -> "TensorFile":
        """Returns the same tensors under other names; those renamed to None are left out."""
        names = {key: rename(key) for key in self}
        tensors = {new: self._tensors[old] for old, new in names.items() if new is not None}
        beside = [new for old, new in names.items() if old in self.beside and new is not None]
        return TensorFile(
            self.path, tensors, self.metadata, self.part, beside=beside, parts=self.parts
        )

    def converted(
        self, convert: Callable[[str, LazyTensor], tuple[str, LazyTensor]]
    ) -> "TensorFile":
        """Returns tensors under other names and in other layouts.

        Args:
            convert: (name, tensor) -> (name, tensor).
        """
        tensors = dict(convert(key, value) for key, value in self._tensors.items())
        beside = [convert(key, self._tensors[key])[0] for key in self.beside]
        return TensorFile(
            self.path, tensors, self.metadata, self.part, beside=beside, parts=self.parts
        )

    def under(self, prefix: str) -> "TensorFile":
        """Returns the tensors whose names start with a prefix, without it.

        The others keep their names and are `beside`, except those whose names are taken.

        Args:
            prefix: start of names, with its separator, as "teacher." or "params/"; "" for all.
        """
        inside = {k.removeprefix(prefix): self._tensors[k] for k in self if k.startswith(prefix)}
        beside = [k for k in self if not k.startswith(prefix) and k not in inside]
        tensors = {**inside, **{key: self._tensors[key] for key in beside}}
        name = prefix[:-1] or "."
        part = f"{self.part}.{name}" if self.part else name
        return TensorFile(self.path, tensors, self.metadata, part, beside=beside, parts=self.parts)

    def without_beside(self) -> "TensorFile":
        """Returns the tensors that are not `beside`."""
        return self.renamed(lambda key: None if key in self.beside else key)

    def marked(self, beside: Iterable[str]) -> "TensorFile":
        """Returns the same tensors, of which those named are `beside`."""
        names = {*self.beside, *beside}
        return TensorFile(self.path, self._tensors, self.metadata, self.part, beside=names)

    def with_tensor(self, key: str, value: np.ndarray) -> "TensorFile":
        """Returns the same tensors and an additional one."""
        tensor = LazyTensor(value.shape, value.dtype, lambda: value)
        tensors = {**self._tensors, key: tensor}
        return TensorFile(self.path, tensors, self.metadata, self.part, beside=self.beside)
