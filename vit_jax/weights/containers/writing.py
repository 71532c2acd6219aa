"""Writing tensors to files."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vit_jax.atomic_files import atomic_write
from vit_jax.paths import StrPath


def write_tensors(
    path: StrPath,
    tensors: Mapping[str, np.ndarray],
    container: str = "safetensors",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors or npz file atomically; an existing file is replaced.

    Args:
        path: path of the file.
        tensors: tensors by name.
        container: "safetensors" or "npz".
        metadata: strings for the header of a safetensors file.
    """
    with atomic_write(path) as partial:
        if container == "npz":
            arrays: dict[str, Any] = dict(tensors)
            with partial.open("wb") as file:  # given a name, savez would append .npz
                np.savez(file, **arrays)
        else:
            partial.touch()
            mode = partial.stat().st_mode
            save_file(dict(tensors), partial, metadata=dict(metadata or {}))
            # The library makes files that only their owner can read.
            partial.chmod(mode)
