"""NumPy archives, member by member; arrays of Python objects are pickles and are refused."""

import pathlib
import zipfile
import zlib

import ml_dtypes
import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.containers.files import LazyTensor, TensorFile

# NumPy has no bfloat16: big_vision's files hold its two bytes as an opaque type.
_OPAQUE = {np.dtype("V2"): np.dtype(ml_dtypes.bfloat16)}


def open_npz(path: pathlib.Path, archive: zipfile.ZipFile) -> TensorFile:
    """Reads the header of every array."""
    members = [name for name in archive.namelist() if name.endswith(".npy")]
    return TensorFile(path, {m.removesuffix(".npy"): _tensor(path, archive, m) for m in members})


def _tensor(path: pathlib.Path, archive: zipfile.ZipFile, member: str) -> LazyTensor:
    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, stored = read_header(file)
    except (ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: {member} is no array that can be read: {error}") from None
    if stored.hasobject:
        raise UserError(
            f"{path}: expected plain arrays; found Python objects in {member}, whose reading could "
            "execute code"
        )

    def load() -> np.ndarray:
        try:
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"{path}: {member} is damaged: {error}") from None
        return array.view(_OPAQUE.get(stored, stored))

    return LazyTensor(shape, _OPAQUE.get(stored, stored), load)
