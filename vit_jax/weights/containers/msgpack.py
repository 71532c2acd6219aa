"""Checkpoints of Flax in one file, as `flax.training.checkpoints` writes them (msgpack).

The whole file is read into memory: msgpack has no index.
"""

import pathlib
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from vit_jax.errors import UserError
from vit_jax.weights.containers.tensors import LazyTensor, TensorFile

# First bytes of a map that is not empty: of up to 15 keys, and of more.
STARTS = tuple(bytes([byte]) for byte in (*range(0x81, 0x90), 0xDE, 0xDF))


def open_msgpack(path: pathlib.Path) -> TensorFile:
    """Reads a checkpoint. Names are joined with "/"; values that are no arrays are left out.

    Args:
        path: path of the file.

    Raises:
        UserError: the file is damaged, or contains no arrays.
    """
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        leaves = traverse_util.flatten_dict(tree)
    except Exception as error:  # a damaged file can raise almost anything
        raise UserError(f"{path} cannot be read as a checkpoint of Flax: {error}") from None
    tensors = {
        "/".join(map(str, keys)): _tensor(value)
        for keys, value in leaves.items()
        if isinstance(value, np.ndarray)
    }
    if not tensors:
        raise UserError(f"{path}: expected a checkpoint of Flax with arrays; found none")
    return TensorFile(path, tensors)


def _tensor(value: Any) -> LazyTensor:
    return LazyTensor(value.shape, value.dtype, lambda: np.array(value))
