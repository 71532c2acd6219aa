"""NumPy archives. Arrays of Python objects are pickles and are refused."""

import pathlib
import zipfile

import ml_dtypes
import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.containers.tensors import LazyTensor, TensorFile

# NumPy has no bfloat16: big_vision's files store it as an opaque type of two bytes.
_OPAQUE = {np.dtype("V2"): np.dtype(ml_dtypes.bfloat16)}


def open_npz(path: pathlib.Path, archive: zipfile.ZipFile) -> TensorFile:
    """Opens an archive and reads the header of every array.

    Args:
        path: path of the archive, for messages.
        archive: the opened archive; it stays open for reading tensors.

    Raises:
        UserError: a member is not an array, or contains Python objects.
    """
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
    except Exception as error:  # a damaged archive or header can raise almost anything
        raise UserError(f"{path}: {member} cannot be read as an array: {error}") from None
    if stored.hasobject:
        raise UserError(
            f"{path}: expected plain arrays; found Python objects in {member}; reading them "
            "could execute code"
        )

    def load() -> np.ndarray:
        try:
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:
            raise UserError(f"{path}: {member} is damaged: {error}") from None
        return array.view(_OPAQUE.get(stored, stored))

    return LazyTensor(shape, _OPAQUE.get(stored, stored), load)
