"""Two-way mapping between another library's tensors and our parameter tree.

A format is a list of `Entry`; the same list imports (`load`) and exports (`export`).
"""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from vit_jax.models.definition import Params
from vit_jax.models.layers.positions import resize_positions
from vit_jax.weights.checks import check
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.transforms import IDENTITY, Shape, Transform, blank

logger = logging.getLogger(__name__)


class Resize(Protocol):
    """Brings a table that was made for another resolution to the model's shape."""

    def accepts(self, found: Shape, wanted: Shape) -> bool:
        """Whether a table of our layout with that shape can be resized."""

    def __call__(self, table: np.ndarray, wanted: Shape) -> np.ndarray:
        """Resizes it."""


@dataclasses.dataclass(frozen=True)
class ResizePositions:
    """Position embeddings (num_prefix + h w, D) of a square grid, see `layers.resize_positions`.

    Attributes:
        grid: the model's, (rows, columns).
        num_prefix: leading rows kept as they are.
    """

    grid: tuple[int, int]
    num_prefix: int = 0

    def accepts(self, found: Shape, wanted: Shape) -> bool:
        """Whether the rows beside the prefix make a square."""
        if len(found) != 2 or found[1:] != wanted[1:] or found[0] <= self.num_prefix:
            return False
        return self._side(found) ** 2 == found[0] - self.num_prefix

    def __call__(self, table: np.ndarray, wanted: Shape) -> np.ndarray:
        """Resizes the table."""
        old = (self._side(table.shape),) * 2
        return np.asarray(resize_positions(jnp.asarray(table), old, self.grid, self.num_prefix))

    def _side(self, shape: Shape) -> int:
        return round((shape[0] - self.num_prefix) ** 0.5)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Parameters of ours that correspond to tensors of theirs.

    Attributes:
        paths: ours, "/" between the names; a plain string for one.
        keys: theirs; a plain string for one. With `layers` they contain `{i}`.
        transform: between the two.
        layers: for parameters with a leading `layers` axis: the number, in their names, of each of
            our layers; `range(12)`, or (1, 3, 5) for every other. The transform sees one layer.
        resize: where a table of another resolution is welcome.
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
        """(our layer, their keys) of each application of the transform."""
        if self.layers is None:
            yield None, tuple(self.keys)
            return
        for layer, i in enumerate(self.layers):
            yield layer, tuple(key.replace("{i}", str(i)) for key in self.keys)

    def our_shapes(self, shapes: Mapping[str, Shape]) -> list[Shape]:
        """Shapes of ours as the transform sees them: without the `layers` axis."""
        for path in self.paths:
            if self.layers is not None and shapes[path][:1] != (len(self.layers),):
                raise ValueError(f"{path} {shapes[path]} has not {len(self.layers)} layers")
        return [shapes[path][self.layers is not None :] for path in self.paths]

    def their_shapes(self, shapes: Mapping[str, Shape]) -> list[Shape]:
        """Shapes of theirs, for one application of the transform."""
        return [x.shape for x in self.transform.save([blank(s) for s in self.our_shapes(shapes)])]

    def accepts(self, found: Sequence[Shape], shapes: Mapping[str, Shape]) -> bool:
        """Whether their tensors of these shapes can be loaded, resized or not."""
        if list(found) == self.their_shapes(shapes):
            return True
        if self.resize is None:
            return False
        ours = self.our_shapes(shapes)
        try:
            arrays = self.transform.load([blank(s) for s in found], ours)
        except (ValueError, IndexError):
            return False
        return all(
            a.shape == s or self.resize.accepts(a.shape, s)
            for a, s in zip(arrays, ours, strict=True)
        )


def flatten(tree: Params) -> dict[str, Any]:
    """Leaves of a parameter tree by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def load(
    entries: Sequence[Entry],
    file: TensorFile,
    model_shapes: Params,
    shardings: Any = None,
    ignored: Sequence[str] = (),
) -> Params:
    """Parameters of a model from another library's file.

    All names and shapes are checked before the first tensor is read. Then each parameter is read,
    placed on its devices and forgotten on the host.

    Args:
        entries: of the format.
        file: opened weights.
        model_shapes: tree of `ShapeDtypeStruct`s, as of `ModelDef.shapes()`; tensors of other
            float types are converted to theirs.
        shardings: tree of shardings like the parameters'; None for the default device.
        ignored: patterns of names without parameters, see `Format.ignored`.

    Raises:
        UserError: one for all missing, unexpected and mis-shaped tensors.
    """
    leaves = flatten(model_shapes)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    check(entries, file, shapes, ignored)
    places = flatten(shardings) if shardings is not None else {}
    # Largest first: where devices copy, the copy needs room beside the parameters already placed.
    order = sorted(entries, key=lambda e: -sum(leaves[path].size for path in e.paths))
    params: dict[str, Any] = {}
    for entry in order:
        arrays = _read(entry, file, shapes, [leaves[path].dtype for path in entry.paths])
        for path in entry.paths:
            params[path] = _place(arrays.pop(0), places.get(path))
    return unflatten({path: params[path] for path in leaves})


def _read(
    entry: Entry, file: TensorFile, shapes: Mapping[str, Shape], dtypes: Sequence[Any]
) -> list[np.ndarray]:
    """Our arrays of an entry, all layers of it."""
    whole = [_empty(shapes[p], d) for p, d in zip(entry.paths, dtypes, strict=True)]
    wanted = entry.our_shapes(shapes)
    for layer, keys in entry.groups():
        arrays = entry.transform.load([file.read(key) for key in keys], wanted)
        for target, array, shape in zip(whole, arrays, wanted, strict=True):
            if array.shape != shape and entry.resize is not None:
                logger.info("%s: resized from %s to %s", entry.paths[0], array.shape, shape)
                array = entry.resize(array.astype(target.dtype), shape)
            target[... if layer is None else layer] = array
    return whole


def _empty(shape: Shape, dtype: Any) -> np.ndarray:
    """Memory that a CPU device adopts as it is; XLA copies what does not start at 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _place(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        placed = jax.device_put(array)
    else:
        # Each process has read the whole array and hands its own devices their parts.
        placed = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return jax.block_until_ready(placed)


def export(entries: Sequence[Entry], params: Params) -> dict[str, np.ndarray]:
    """Tensors under another library's names, from our parameters."""
    leaves = flatten(params)
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        arrays = [np.asarray(leaves[path]) for path in entry.paths]
        for layer, keys in entry.groups():
            saved = entry.transform.save([a if layer is None else a[layer] for a in arrays])
            tensors.update({k: np.asarray(a, order="C") for k, a in zip(keys, saved, strict=True)})
    return tensors
