"""Writing tensors to files."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import serialization, traverse_util
from safetensors.numpy import save_file

from vit_jax.atomic_files import atomic_write
from vit_jax.paths import StrPath


def write_tensors(
    path: StrPath,
    tensors: Mapping[str, np.ndarray],
    container: str = "safetensors",
    metadata: Mapping[str, str] | None = None,
    *,
    root: str = "",
) -> None:
    """Writes a file of tensors atomically; an existing file is replaced.

    Args:
        path: path of the file.
        tensors: tensors by name.
        container: "safetensors", "npz" or "msgpack", a checkpoint of Flax, for which names are
            split at "/".
        metadata: strings for the header of a safetensors file.
        root: key of the tensors in a checkpoint of Flax; "" for the top.
    """
    with atomic_write(path) as partial:
        if container == "npz":
            arrays: dict[str, Any] = dict(tensors)
            with partial.open("wb") as file:  # given a name, savez would append .npz
                np.savez(file, **arrays)
        elif container == "msgpack":
            tree = traverse_util.unflatten_dict(dict(tensors), sep="/")
            tree = {root: tree} if root else tree
            partial.write_bytes(serialization.msgpack_serialize(tree))
        else:
            partial.touch()
            mode = partial.stat().st_mode
            save_file(dict(tensors), partial, metadata=dict(metadata or {}))
            # The library makes files that only their owner can read.
            partial.chmod(mode)
