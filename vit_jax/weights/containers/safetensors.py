"""Safetensors: a JSON header of shapes and offsets, then the bytes.

The library of that name maps the whole file, whose pages then count beside the parameters made of
them; here each tensor is read into memory of its own.
"""

import json
import math
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.containers.files import LazyTensor, TensorFile

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def open_safetensors(path: pathlib.Path) -> TensorFile:
    """Reads the header and checks that the file is as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if 8 + length > size:
            raise UserError(
                f"{path}: truncated: expected a header of {length} bytes; "
                f"found {size - 8} bytes after its length"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        tensors = {key: _tensor(path, 8 + length, **entry) for key, entry in header.items()}
        end = 8 + length + max((e["data_offsets"][1] for e in header.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: the safetensors header cannot be read: {error}") from None
    if end != size:
        state = "truncated" if size < end else "longer than its header says"
        raise UserError(f"{path}: {state}: expected {end} bytes; found {size}")
    return TensorFile(path, tensors, metadata)


def _tensor(
    path: pathlib.Path, start: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> LazyTensor:
    if dtype not in DTYPES:
        raise UserError(f"{path}: expected a dtype of {', '.join(DTYPES)}; found {dtype!r}")
    kind, (first, last) = np.dtype(DTYPES[dtype]), data_offsets
    count = math.prod(shape) * kind.itemsize
    if last - first != count:
        raise UserError(
            f"{path}: damaged header: expected {count} bytes for {dtype} {tuple(shape)}; "
            f"found {last - first}"
        )

    def load() -> np.ndarray:
        raw = np.fromfile(path, np.uint8, count, offset=start + first)
        return raw.view(kind).reshape(shape)

    return LazyTensor(tuple(shape), kind, load)
