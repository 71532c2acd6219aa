"""Writing tensors, whole or not at all."""

import os
import pathlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors.numpy import save_file


@contextmanager
def whole_or_not(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, renamed to it at the end or removed on an error."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(
    path: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    container: str = "safetensors",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors or npz file; an existing one is replaced.

    Args:
        path: of the file.
        tensors: by name.
        container: "safetensors" or "npz".
        metadata: for a safetensors file's header.
    """
    with whole_or_not(path) as partial:
        if container == "npz":
            arrays: dict[str, Any] = dict(tensors)
            with partial.open("wb") as file:  # savez would append .npz to a name
                np.savez(file, **arrays)
        else:
            partial.touch()
            mode = partial.stat().st_mode
            save_file(dict(tensors), partial, metadata=dict(metadata or {}))
            # The library makes files that their owner alone can read; weights are shared.
            partial.chmod(mode)
