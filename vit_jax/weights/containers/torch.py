"""Torch archives, read without torch: `torch.save` (zip, since torch 1.6) and TorchScript.

In an archive, `data.pkl` is a pickle of the objects that refers to one zip member per storage. The
unpickler here can rebuild tensors and plain containers only. Classes that the archive itself
defines become inert `Holder` objects; any other global is refused before it is called.
"""

import io
import math
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.containers.tensors import LazyTensor, TensorFile

# Keys of a training checkpoint that contain a model's tensors, in order of preference.
WRAPPERS = ("model", "state_dict")

STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Holder(dict):
    """Placeholder for an object whose class is not imported. It keeps the object's attributes."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Holder":
        """Accepts the arguments of any class."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


# Classes of settings and metrics that training scripts save beside the tensors.
HOLDERS = (
    ("argparse", "Namespace"),
    ("yacs.config", "CfgNode"),
    ("pathlib", "PosixPath"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("torch", "device"),
)


class _Storage:
    """A zip member as a flat array of elements of one dtype."""

    def __init__(
        self, path: pathlib.Path, archive: zipfile.ZipFile, member: str, dtype: np.dtype
    ) -> None:
        self.path, self.archive, self.member, self.dtype = path, archive, member, dtype
        try:
            size = archive.getinfo(member).file_size
        except KeyError:
            raise UserError(f"{path}: expected the storage {member}; found none") from None
        self.count = size // dtype.itemsize

    def tensor(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> LazyTensor:
        """Returns a strided view of the storage; offset and strides count elements."""
        last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        extent = last + 1 if math.prod(shape) else 0
        if min((offset, *shape, *strides)) < 0 or offset + extent > self.count:
            raise UserError(
                f"{self.path}: expected {offset + extent} elements of {self.dtype} in "
                f"{self.member}; found {self.count}"
            )

        def load() -> np.ndarray:
            flat = np.frombuffer(self._read(offset, extent), self.dtype)
            steps = [stride * self.dtype.itemsize for stride in strides]
            return np.array(np.lib.stride_tricks.as_strided(flat, shape, steps))

        def load_contiguous() -> np.ndarray:
            return np.frombuffer(self._read(offset, extent), self.dtype).reshape(shape)

        contiguous = strides == _contiguous(shape) or not extent
        return LazyTensor(shape, self.dtype, load_contiguous if contiguous else load)

    def _read(self, offset: int, count: int) -> bytes:
        try:
            with self.archive.open(self.member) as file:
                if offset:
                    file.seek(offset * self.dtype.itemsize)
                return file.read(count * self.dtype.itemsize)
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{self.path}: {self.member} is damaged: {error}") from None


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any
) -> LazyTensor:
    return storage.tensor(offset, tuple(shape), tuple(strides))


def _first(value: Any, *_: Any) -> Any:
    return value


# Globals that the unpickler may call; all others are refused.
REBUILDERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{("torch", name): np.dtype(kind) for name, kind in STORAGES.items()},
    **dict.fromkeys(HOLDERS, Holder),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile, member: str) -> None:
        super().__init__(io.BytesIO(archive.read(member)), encoding="utf-8")
        self.path, self.archive = path, archive
        self.prefix = member.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # Python 2's name, in protocol 2
        if module.partition(".")[0] == "__torch__":  # a class defined by the TorchScript archive
            return Holder
        if (module, name) not in REBUILDERS:
            raise UserError(
                f"{self.path}: expected tensors and plain containers; found {module}.{name}, which "
                "is refused because calling it could execute code"
            )
        return REBUILDERS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        return _Storage(self.path, self.archive, f"{self.prefix}data/{key}", dtype)


def open_torch(path: pathlib.Path, archive: zipfile.ZipFile) -> TensorFile:
    """Opens an archive and reads the description of its tensors.

    From a training checkpoint, the tensors under `model` or `state_dict` are taken
    (`TensorFile.part` is the key). From a TorchScript archive, the parameters and buffers of the
    module hierarchy are taken, under dotted names.

    Args:
        path: path of the archive, for messages.
        archive: the opened archive; it stays open for reading tensors.

    Raises:
        UserError: the archive is damaged, contains code or contains no tensors.
    """
    member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
    order = f"{member.removesuffix('data.pkl')}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise UserError(f"{path}: expected little-endian storages; found {archive.read(order)!r}")
    try:
        content = _Unpickler(path, archive, member).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        raise UserError(f"{path}: {member} cannot be read: {error}") from None
    part = None
    if isinstance(content, dict) and not isinstance(content, Holder):
        part = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
    tensors = dict(_flatten(content[part] if part else content))
    if not tensors:
        found = f"the keys {list(content)[:10]}" if isinstance(content, dict) else type(content)
        raise UserError(
            f"{path}: expected tensors by name, at the top or under "
            f"{' or '.join(map(repr, WRAPPERS))}; found {found}"
        )
    return TensorFile(path, tensors, part=part)


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, LazyTensor]]:
    """Tensors of a state dict or of nested modules, under dotted names."""
    if not isinstance(tree, Mapping):
        return
    for name, value in tree.items():
        if isinstance(value, LazyTensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Holder):
            yield from _flatten(value, f"{prefix}{name}.")
