"""Embeddings on disk, which later evaluations read and interrupted ones continue.

The name of a file is a hash of everything that determines its contents: weights, data,
preprocessing, precision. Other weights or changed data have other files.
"""

import hashlib
import json
import os
import pathlib
import time
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.atomic_files import write_text
from vit_jax.data.images import image_content
from vit_jax.parallel import processes

_SAMPLED = 64  # images per source that are read for its fingerprint
_SAVE_SECONDS = 15.0  # interval of flushes to disk


@runtime_checkable
class Rows(Protocol):
    """Storage of rows (N, D), filled in order.

    Attributes:
        done: number of rows that are stored.
    """

    done: int

    def append(self, rows: np.ndarray) -> None:
        """Stores the next rows.

        Args:
            rows: array (n, D).
        """

    def save(self) -> None:
        """Makes the stored rows durable."""

    def read(self) -> np.ndarray:
        """Returns all rows."""
        ...


class RowList:
    """Rows in memory."""

    def __init__(self) -> None:
        """Starts without rows."""
        self.done = 0
        self._parts: list[np.ndarray] = []

    def append(self, rows: np.ndarray) -> None:
        """Stores the next rows."""
        self._parts.append(rows)
        self.done += len(rows)

    def save(self) -> None:
        """Does nothing: memory is not durable."""

    def read(self) -> np.ndarray:
        """Returns all rows."""
        return np.concatenate(self._parts)


class RowFile:
    """Rows in a float32 file.

    Process 0 writes it. All processes read it memory-mapped, so that it may be larger than memory.
    The folder must be visible to all processes, as a workdir.
    """

    def __init__(self, folder: pathlib.Path, key: str, count: int):
        """Opens the file, or declares a new one.

        Args:
            folder: folder of the cache.
            key: name of the file, without extension.
            count: total number of rows.
        """
        self._path, self._count = folder / f"{key}.npy", count
        self._state = folder / f"{key}.json"
        self._file: np.memmap | None = None
        self._saved = time.monotonic()
        self.done = processes.from_first(self._read_done())

    def _read_done(self) -> int:
        if jax.process_index() or not (self._path.is_file() and self._state.is_file()):
            return 0
        return int(json.loads(self._state.read_text())["done"])

    def append(self, rows: np.ndarray) -> None:
        """Stores the next rows, and saves them from time to time."""
        if jax.process_index() == 0:
            if self._file is None:
                self._file = self._open(rows.shape[1])
            self._file[self.done : self.done + len(rows)] = rows
        self.done += len(rows)
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Flushes the rows, then records their number."""
        self._saved = time.monotonic()
        if self._file is not None:
            self._file.flush()
            write_text(self._state, json.dumps({"done": self.done}))

    def _open(self, width: int) -> np.memmap:
        if self.done:
            return np.lib.format.open_memmap(self._path, mode="r+")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._state.unlink(missing_ok=True)
        shape = (self._count, width)
        return np.lib.format.open_memmap(self._path, mode="w+", dtype=np.float32, shape=shape)

    def read(self) -> np.ndarray:
        """Returns all rows, memory-mapped."""
        self.save()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(self._path.name)
        return np.load(self._path, mmap_mode="r")


def digest(*parts: Any) -> str:
    """Hashes values that JSON can represent, to 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def source_fingerprint(source: Any) -> str:
    """Hashes a source without reading all of it.

    The hash covers the length, the labels, `_SAMPLED` evenly spaced images and, if the examples are
    files, size and modification time of each.

    Args:
        source: examples with an image each.
    """
    hashed = hashlib.sha256(str(len(source)).encode())
    labels = getattr(source, "labels", None)
    if labels is not None:
        hashed.update(np.asarray(labels, np.int64).tobytes())
    for i in np.unique(np.linspace(0, len(source) - 1, _SAMPLED).astype(int)):
        hashed.update(image_content(source[int(i)]["image"]))
    if hasattr(source, "annotation") and "key" in source.annotation(0):
        for i in range(len(source)):
            key = str(source.annotation(i)["key"])
            hashed.update(key.encode("utf-8", "backslashreplace"))
            if os.path.isfile(key):
                stat = os.stat(key)
                hashed.update(f" {stat.st_size} {stat.st_mtime_ns}".encode())
    return hashed.hexdigest()


def weights_fingerprint(params: Any) -> str:
    """Hashes parameters, independently of their sharding.

    The bits of each array are summed on the devices, modulo 2^32, with weights that depend on the
    position: sums of integers do not depend on the order.

    Args:
        params: tree of arrays.
    """
    sums = jax.device_get(_sums(params))
    named = jax.tree_util.tree_leaves_with_path(sums)
    shapes = [str(x.shape) for x in jax.tree.leaves(params)]
    return digest(
        [
            (jax.tree_util.keystr(path), shape, [int(n) for n in value])
            for (path, value), shape in zip(named, shapes, strict=True)
        ]
    )


@jax.jit
def _sums(params: Any) -> Any:
    def one(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        position = jnp.zeros(x.shape, jnp.uint32)
        stride = 1
        for axis in reversed(range(x.ndim)):
            iota = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            position += iota * jnp.uint32(stride % 2**32)
            stride *= x.shape[axis]
        # An odd factor is invertible modulo 2^32, so every change of a single value is detected.
        first = bits * (position * jnp.uint32(2654435761) * 2 + 1)
        second = (bits ^ (bits >> 15)) * (position * jnp.uint32(2246822519) * 2 + 1)
        return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)])

    return jax.tree.map(one, params)
