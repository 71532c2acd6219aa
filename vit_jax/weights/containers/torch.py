"""Torch archives, read without torch: `torch.save` (zip, since torch 1.6) and TorchScript.

In an archive, `data.pkl` is a pickle of the objects that refers to one zip member per storage. The
unpickler here rebuilds tensors and plain containers. An object of any other class becomes an inert
`Holder` of its attributes: its class is neither imported nor called. Functions that pickles use to
run code are refused.
"""

import io
import math
import pathlib
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.containers.tensors import LazyTensor, TensorFile

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
# Modules whose functions run code or commands. Nothing of them would be called; a file that names
# them is an attack and is refused as a whole.
REFUSED = frozenset(
    {"code", "commands", "ctypes", "importlib", "marshal", "nt", "os", "pickle", "posix", "pty"}
    | {"runpy", "shutil", "socket", "subprocess", "sys", "urllib", "webbrowser"}
)
# Types of `builtins` that harmless pickles name, some as in Python 2; its functions are refused.
PLAIN_TYPES = frozenset(
    {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long"}
    | {"object", "range", "slice", "str", "tuple", "unicode", "xrange"}
)


class Holder(dict):
    """Placeholder for an object whose class is not imported. It keeps the object's attributes.

    Two placeholders are equal if they are the same object, so that they can be keys.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "Holder":
        """Accepts the arguments of any class."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Stores the attributes; a tuple contains those in `__dict__` and those in slots."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.update(part)

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def append(self, value: Any) -> None:
        """Drops an element of a list or deque."""

    def extend(self, values: Any) -> None:
        """Drops elements of a list or deque."""

    def add(self, value: Any) -> None:
        """Drops an element of a set."""


class ScriptModule(Holder):
    """Object of a class that a TorchScript archive defines: a module with its tensors."""


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
        except Exception as error:  # a damaged archive can raise almost anything
            raise UserError(f"{self.path}: {self.member} is damaged: {error}") from None


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _rebuild_tensor(
    storage: _Storage | Holder, offset: int, shape: Any, strides: Any, *_: Any
) -> LazyTensor | Holder:
    if isinstance(storage, Holder):  # of a dtype that NumPy lacks
        return storage
    return storage.tensor(offset, tuple(shape), tuple(strides))


def _rebuild_from_type(rebuild: Any, kind: Any, args: Any, *_: Any) -> Any:
    """Rebuilds a tensor of a subclass; `rebuild` is one of the rebuilders here, or `Holder`."""
    del kind
    return rebuild(*args)


def _first(value: Any, *_: Any) -> Any:
    return value


# Globals that the unpickler calls.
REBUILDERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{("torch", name): np.dtype(kind) for name, kind in STORAGES.items()},
}


def _check_memo(content: bytes) -> None:
    """Refuses memo indices of damaged pickles, for which `pickle` would allocate gigabytes."""
    for opcode, index, _ in pickletools.genops(content):
        if opcode.name.endswith("PUT") and index is not None and index > len(content):
            raise pickle.UnpicklingError(f"memo index {index} in {len(content)} bytes")


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile, member: str) -> None:
        content = archive.read(member)
        _check_memo(content)
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.path, self.archive = path, archive
        self.prefix = member.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # Python 2's name, in protocol 2
        if (module, name) in REBUILDERS:
            return REBUILDERS[module, name]
        root = module.partition(".")[0]
        if root in REFUSED or (root == "builtins" and name not in PLAIN_TYPES):
            raise UserError(
                f"{self.path}: expected tensors and harmless objects; found {module}.{name}, which "
                "is refused because calling it could execute code"
            )
        return ScriptModule if root == "__torch__" else Holder

    def persistent_load(self, pid: Any) -> _Storage | Holder:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        if not isinstance(dtype, np.dtype):
            return Holder()
        return _Storage(self.path, self.archive, f"{self.prefix}data/{key}", dtype)


def open_torch(path: pathlib.Path, archive: zipfile.ZipFile) -> TensorFile:
    """Opens an archive and reads the description of its tensors.

    From a checkpoint with one dict of tensors, that dict is taken (`TensorFile.part` is its key).
    From one with several dicts, all are taken: their keys are the first components of the names
    (`TensorFile.parts`). From a TorchScript archive or a pickled module, the parameters and buffers
    of the module hierarchy are taken, under dotted names.

    Args:
        path: path of the archive, for messages.
        archive: the opened archive; it stays open for reading tensors.

    Raises:
        UserError: the archive is damaged, contains code or contains no tensors.
    """
    member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
    order = f"{member.removesuffix('data.pkl')}byteorder"
    try:
        endianness = archive.read(order) if order in archive.namelist() else b"little"
        if endianness != b"little":
            raise UserError(f"{path}: expected little-endian storages; found {endianness!r}")
        content = _Unpickler(path, archive, member).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        raise UserError(f"{path}: {member} cannot be read: {error}") from None
    parts = dict(_parts(content)) if isinstance(content, Mapping) else {}
    if not parts:
        found = f"the keys {list(content)[:10]}" if isinstance(content, dict) else type(content)
        raise UserError(
            f"{path}: expected tensors by name, at the top or in a dict, as under 'model' or "
            f"'state_dict'; found {found}"
        )
    if len(parts) == 1:
        [(part, tensors)] = parts.items()
        return TensorFile(path, tensors, part=part or None)
    names = {
        f"{part}.{key}" if part else key: tensor
        for part, tensors in parts.items()
        for key, tensor in tensors.items()
    }
    return TensorFile(path, names, parts=[part for part in parts if part])


def _parts(tree: Mapping) -> Iterator[tuple[str, dict[str, LazyTensor]]]:
    """Dicts that contain tensors, at any depth, by their keys joined with dots.

    Numbered dicts, which are the states of optimizers, are left out. A dict with several keys is
    found under the first.
    """
    found: list[tuple[str, Mapping]] = [("", tree)]
    seen = {id(tree)}
    for part, node in found:
        if tensors := dict(_tensors(node)):
            yield part, tensors
        if _is_module(node):
            continue
        for key, value in node.items():
            nested = isinstance(value, Mapping) and not isinstance(value, ScriptModule)
            if isinstance(key, str) and nested and id(value) not in seen:
                seen.add(id(value))
                found.append((f"{part}.{key}" if part else key, value))


def _tensors(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, LazyTensor]]:
    """Tensors of a state dict or of nested modules, under dotted names."""
    own, modules = tree, {k: v for k, v in tree.items() if isinstance(v, ScriptModule)}
    if _is_module(tree):
        own = {**tree["_parameters"], **tree["_buffers"]}
        own = {k: v for k, v in own.items() if k not in tree["_non_persistent_buffers_set"]}
        modules = tree["_modules"]
    for name, value in own.items():
        if isinstance(name, str) and isinstance(value, LazyTensor):
            yield f"{prefix}{name}", value
    for name, module in modules.items():
        if isinstance(module, Mapping):
            yield from _tensors(module, f"{prefix}{name}.")


def _is_module(tree: Mapping) -> bool:
    """Whether an object is a pickled `torch.nn.Module`."""
    parts = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
    return isinstance(tree, Holder) and all(name in tree for name in parts)
