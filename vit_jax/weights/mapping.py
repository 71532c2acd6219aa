"""Two-way mapping between the tensors of another library and a parameter tree.

A mapping is a list of `Entry`. The same list serves loading (`load`) and saving (`export`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Sharding

from vit_jax.weights.checks import check
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.transforms import Shape

if TYPE_CHECKING:
    from vit_jax.models.definition import Params


def load(
    entries: Sequence[Entry],
    file: TensorFile,
    model_shapes: "Params",
    shardings: Any = None,
    ignored: Sequence[str] = (),
) -> "Params":
    """Loads the parameters of a model.

    All names and shapes are checked before the first tensor is read. Then each parameter is read,
    placed on its devices and released on the host.

    Args:
        entries: mapping of the model's format.
        file: opened weight file.
        model_shapes: tree of `ShapeDtypeStruct`, as returned by `ModelDef.shapes()`; tensors of
            other float dtypes are converted.
        shardings: tree of shardings like the parameters; None for the default device.
        ignored: patterns of names that are not parameters, see `Format.ignored`.

    Raises:
        UserError: lists all tensors that are missing, unexpected or of another shape.
    """
    leaves = traverse_util.flatten_dict(model_shapes, sep="/")
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    check(entries, file, shapes, ignored)
    places = traverse_util.flatten_dict(shardings, sep="/") if shardings is not None else {}
    # Largest first: the host copy needs memory beside the parameters that are already placed.
    order = sorted(entries, key=lambda e: -sum(leaves[path].size for path in e.paths))
    params: dict[str, Any] = {}
    for entry in order:
        arrays = _read(entry, file, shapes, [leaves[path].dtype for path in entry.paths])
        for path in entry.paths:
            params[path] = _place(arrays.pop(0), places.get(path))
    return traverse_util.unflatten_dict({path: params[path] for path in leaves}, sep="/")


def _read(
    entry: Entry, file: TensorFile, shapes: Mapping[str, Shape], dtypes: Sequence[Any]
) -> list[np.ndarray]:
    """Reads the parameters of an entry, all layers of them."""
    whole = [_empty(shapes[p], d) for p, d in zip(entry.paths, dtypes, strict=True)]
    expected = entry.parameter_shapes(shapes)
    for layer, keys in entry.groups():
        arrays = entry.transform.load([file.read(key) for key in keys], expected)
        if entry.resize is not None:
            arrays[-1] = entry.resize(arrays[-1].astype(dtypes[-1], copy=False), expected[-1])
        for target, array in zip(whole, arrays, strict=True):
            target[... if layer is None else layer] = array
    return whole


def _empty(shape: Shape, dtype: Any) -> np.ndarray:
    """Allocates memory aligned to 64 bytes, which a CPU device uses without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _place(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        placed = jax.device_put(array)
    else:
        # Each process has read the whole array and places the shards of its own devices.
        placed = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return jax.block_until_ready(placed)


def export(entries: Sequence[Entry], params: "Params") -> dict[str, np.ndarray]:
    """Returns the parameters of a model as tensors of another library, by name.

    Args:
        entries: mapping of the model's format.
        params: nested dict of arrays.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        arrays = [np.asarray(leaves[path]) for path in entry.paths]
        for layer, keys in entry.groups():
            saved = entry.transform.save([a if layer is None else a[layer] for a in arrays])
            tensors.update({k: np.asarray(a, order="C") for k, a in zip(keys, saved, strict=True)})
    return tensors
