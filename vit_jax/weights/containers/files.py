"""Tensors in files of other libraries, read one at a time and without executing anything.

`open_weights` recognises a file by its content and reads no tensor; a tensor is read when it is
asked for, so that a model of any size passes through little memory.
"""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError, unknown

# Names that Hugging Face gives the weights within a model's folder, by preference.
FOLDER_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file.

    Attributes:
        shape: of the tensor.
        dtype: NumPy's, or one of ml_dtypes.
        load: reads it into memory; each call reads again.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


class TensorFile:
    """A mapping from names to tensors that are read on request."""

    def __init__(
        self,
        path: pathlib.Path,
        tensors: Mapping[str, LazyTensor],
        metadata: Mapping[str, str] | None = None,
        part: str | None = None,
    ):
        """Names starting with `module.` alike (torch's data parallel wrappers) lose the prefix.

        Args:
            path: of the file, for messages.
            tensors: by name.
            metadata: what the file says of itself.
            part: entry of the file that the tensors were taken from; None for the whole file.
        """
        self.path, self.metadata, self.part = path, dict(metadata or {}), part
        if tensors and all(key.startswith("module.") for key in tensors):
            tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
        self._tensors = dict(tensors)

    def __str__(self) -> str:
        return str(self.path) + (f" (its entry {self.part!r})" if self.part else "")

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def keys(self) -> list[str]:
        """Names in the file's order."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensor(key).shape

    def dtype(self, key: str) -> np.dtype:
        """Type of a tensor; bfloat16 and 8-bit floats are those of ml_dtypes."""
        return self._tensor(key).dtype

    def read(self, key: str) -> np.ndarray:
        """Reads one tensor into memory of its own."""
        return self._tensor(key).load()

    def renamed(self, rename: Callable[[str], str | None]) -> "TensorFile":
        """The same tensors under other names; those renamed to None are left out."""
        names = {key: rename(key) for key in self}
        tensors = {new: self._tensors[old] for old, new in names.items() if new is not None}
        return TensorFile(self.path, tensors, self.metadata, self.part)

    def with_tensor(self, key: str, value: np.ndarray) -> "TensorFile":
        """The same tensors and one more."""
        tensor = LazyTensor(value.shape, value.dtype, lambda: value)
        return TensorFile(self.path, {**self._tensors, key: tensor}, self.metadata, self.part)

    def _tensor(self, key: str) -> LazyTensor:
        if key not in self._tensors:
            raise UserError(f"{self}: {unknown(key, self._tensors, 'tensor')}")
        return self._tensors[key]


def open_weights(path: str | pathlib.Path) -> TensorFile:
    """Opens a weight file, whatever its suffix says.

    Args:
        path: safetensors, NumPy `.npz`, a torch archive (`torch.save` since torch 1.6, or
            TorchScript), an index of shards, or a folder with one of them under the name that
            Hugging Face gives it.

    Raises:
        UserError: no such file; none of these formats; damaged; contains code.
    """
    path = _resolve(pathlib.Path(path).expanduser())
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == b"PK\x03\x04":
        return _open_zip(path)
    if head[8:] == b"{":
        from vit_jax.weights.containers.safetensors import open_safetensors

        return open_safetensors(path)
    if head[:1] == b"{":
        return _open_index(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UserError(
            f"{path}: a bare pickle, as torch wrote before 1.6; reading it could execute code. "
            "Load it where you trust it and save it again with torch.save or safetensors"
        )
    raise UserError(
        f"{path}: expected safetensors, .npz, a torch archive or an index of shards; found a file "
        f"that starts with {head!r}"
    )


def _resolve(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        for name in FOLDER_NAMES:
            if (path / name).is_file():
                return path / name
        found = ", ".join(sorted(p.name for p in path.iterdir())[:10]) or "nothing"
        raise UserError(f"{path}: expected one of {', '.join(FOLDER_NAMES)} in it; found {found}")
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no weight file at {path}: {unknown(path.name, siblings, 'file')}")
    return path


def _open_zip(path: pathlib.Path) -> TensorFile:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path}: expected a whole zip archive; found a damaged one ({error})"
        ) from None
    names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        from vit_jax.weights.containers.torch import open_torch

        return open_torch(path, archive)
    if any(name.endswith(".npy") for name in names):
        from vit_jax.weights.containers.npz import open_npz

        return open_npz(path, archive)
    raise UserError(
        f"{path}: expected a zip archive with .npy arrays or with torch's data.pkl; "
        f"found {', '.join(names[:5]) or 'an empty one'}"
    )


def _open_index(path: pathlib.Path) -> TensorFile:
    """Hugging Face's index: {"weight_map": {tensor: file beside the index}}."""
    index = read_json(path)
    places = index.get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{path}: expected an index with the key 'weight_map'; found {list(index)}")
    shards: dict[str, TensorFile] = {}
    for name in sorted(set(places.values())):
        if pathlib.PurePath(name).name != name:
            raise UserError(f"{path}: expected shards beside the index; found {name!r}")
        shards[name] = open_weights(path.parent / name)
    absent = [f"{key} in {name}" for key, name in places.items() if key not in shards[name]]
    if absent:
        raise UserError(f"{path}: its shards lack {', '.join(absent)}")
    tensors = {key: shards[name]._tensor(key) for key, name in places.items()}
    return TensorFile(path, tensors)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """An object from a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; found {type(content).__name__}")
    return content
