"""One correspondence between parameters of a model and tensors of a file."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from vit_jax.weights.transforms import IDENTITY, Shape, Transform, blank


@runtime_checkable
class Resize(Protocol):
    """Resizing of a table whose shape depends on the image resolution."""

    @property
    def hint(self) -> str:
        """How to load a table that is not accepted, for the error message."""

    def resized_from(self, source: Any) -> Self:
        """Returns the same resizing for tables of a known grid.

        Args:
            source: resizing of the model that the file was saved for.
        """

    def accepts(self, found: Shape, expected: Shape) -> bool:
        """Returns whether a table of shape `found` can be resized to shape `expected`."""

    def __call__(self, table: np.ndarray, expected: Shape) -> np.ndarray:
        """Resizes a table to shape `expected`; a table of the right grid is returned as it is."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """Parameters of a model and the tensors of a file that hold them.

    Attributes:
        paths: paths of the parameters, as "head/kernel"; a string for a single one.
        keys: names of the tensors; a string for a single one. With `layers` they contain `{i}`.
        transform: conversion between tensors and parameters.
        layers: for parameters that are stacked along a leading `layers` axis, the number of each
            layer in the names of the tensors, as `range(12)`. The transform converts one layer.
        resize: resizing of the last parameter, a table, from files of another resolution; None if
            its shape does not depend on the resolution.
    """

    paths: tuple[str, ...] | str
    keys: tuple[str, ...] | str
    transform: Transform = IDENTITY
    layers: Sequence[int] | None = None
    resize: Resize | None = None

    def __post_init__(self) -> None:
        for name in ("paths", "keys"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    def groups(self) -> Iterator[tuple[int | None, tuple[str, ...]]]:
        """Yields (layer, keys) for each application of the transform.

        Without `layers` the transform is applied once and layer is None.
        """
        if self.layers is None:
            yield None, tuple(self.keys)
            return
        for layer, i in enumerate(self.layers):
            yield layer, tuple(key.replace("{i}", str(i)) for key in self.keys)

    def parameter_shapes(self, shapes: Mapping[str, Shape]) -> list[Shape]:
        """Returns the shapes of the parameters without the `layers` axis.

        Args:
            shapes: shapes of all parameters by path.
        """
        for path in self.paths:
            if self.layers is not None and shapes[path][:1] != (len(self.layers),):
                raise ValueError(f"{path} {shapes[path]}: expected {len(self.layers)} layers")
        return [shapes[path][self.layers is not None :] for path in self.paths]

    def tensor_shapes(self, shapes: Mapping[str, Shape]) -> list[Shape]:
        """Returns the shapes of the tensors for one application of the transform.

        Args:
            shapes: shapes of all parameters by path.
        """
        return [
            x.shape for x in self.transform.save([blank(s) for s in self.parameter_shapes(shapes)])
        ]

    def accepts(self, found: Sequence[Shape], shapes: Mapping[str, Shape]) -> bool:
        """Returns whether tensors can be loaded, resized if necessary.

        Args:
            found: shapes of the tensors for one application of the transform.
            shapes: shapes of all parameters by path.
        """
        if list(found) == self.tensor_shapes(shapes):
            return True
        if self.resize is None:
            return False
        expected = self.parameter_shapes(shapes)
        try:
            arrays = self.transform.load([blank(s) for s in found], expected)
        except (ValueError, IndexError):
            return False
        *others, table = [a.shape for a in arrays]
        return others == expected[:-1] and self.resize.accepts(table, expected[-1])
