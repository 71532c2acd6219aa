"""Tensors that are still in their file."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping

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
    ) -> None:
        """Initializes the file.

        Args:
            path: path of the file, for messages.
            tensors: tensors by name.
            metadata: strings in the header of a safetensors file.
            part: key of a checkpoint dict that the tensors were taken from; None for the whole
                file.
        """
        self.path, self.metadata, self.part = path, dict(metadata or {}), part
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
        return TensorFile(self.path, tensors, self.metadata, self.part)

    def with_tensor(self, key: str, value: np.ndarray) -> "TensorFile":
        """Returns the same tensors and an additional one."""
        tensor = LazyTensor(value.shape, value.dtype, lambda: value)
        return TensorFile(self.path, {**self._tensors, key: tensor}, self.metadata, self.part)
