"""Safetensors: a JSON header with shapes and offsets, followed by the data.

The `safetensors` library memory-maps the whole file, and the mapped pages add to the host memory of
the parameters. Here each tensor is read into newly allocated memory.
"""

import json
import math
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.containers.tensors import LazyTensor, TensorFile

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
    """Opens a file: reads its header and checks the length of the file.

    Args:
        path: path of the file.

    Raises:
        UserError: the header is damaged, or the file is truncated or too long.
    """
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
        state = "truncated" if size < end else "longer than its header declares"
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
