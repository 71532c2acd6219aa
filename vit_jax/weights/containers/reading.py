"""Opening weight files of any container format.

`open_weights` detects the container from the content of the file and reads no tensor. Tensors are
read one at a time, so that a large model needs little host memory.
"""

import json
import pathlib
import re
import zipfile
from typing import Any

from vit_jax.errors import UserError, printable, unknown
from vit_jax.paths import StrPath, as_local_path, as_path
from vit_jax.weights.containers.msgpack import STARTS, open_msgpack
from vit_jax.weights.containers.npz import open_npz
from vit_jax.weights.containers.safetensors import open_safetensors
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.containers.torch import open_torch

# File names of the weights within a Hugging Face model folder, in order of preference.
FOLDER_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "flax_model.msgpack.index.json",
    "flax_model.msgpack",
)
# Between the path of a file and the key of a part of it.
SEPARATOR = "#"
# Key of the tensors that lie at the top of a checkpoint, beside dicts with other models.
TOP = "."


def open_weights(path: StrPath) -> TensorFile:
    """Opens a weight file. The suffix of its name does not matter.

    Args:
        path: safetensors file, NumPy `.npz`, torch archive (`torch.save` since torch 1.6, or
            TorchScript), checkpoint of Flax in one file (msgpack), index of shards, or a folder
            that contains one of them under its Hugging Face name (`FOLDER_NAMES`). `PATH#KEY`
            selects the tensors under a key of a checkpoint, or under a prefix of names; `PATH#.`
            those at the top.

    Raises:
        UserError: the file does not exist, has another format, is damaged or contains code; or it
            has no such key.
    """
    place, key = split_part(path)
    try:
        file = _open(_resolve(place))
    except UserError as error:  # what a damaged file holds may not be printable
        raise type(error)(printable(str(error))) from error
    if key is None or key == file.part:
        return file
    if key == TOP:
        return file.under("")
    for prefix in (f"{key}.", f"{key}/"):
        if any(name.startswith(prefix) for name in file):
            return file.under(prefix)
    known = {file.part, *file.parts, *(re.split("[./]", name)[0] for name in file)} - {None}
    raise UserError(f"{place}: {unknown(key, map(str, known), 'key')}")


def split_part(path: StrPath) -> tuple[pathlib.Path, str | None]:
    """Splits `PATH#KEY` into the path and the key; the key is None without `#`.

    Args:
        path: path of a weight file or folder. An existing file whose name contains `#` is meant
            itself.
    """
    whole = local_weights(path)
    place, separator, key = str(whole).rpartition(SEPARATOR)
    if not separator or whole.exists():
        return whole, None
    return pathlib.Path(place), key


def local_weights(path: StrPath) -> pathlib.Path:
    """Returns the path of a weight file, of a folder of weights or of a run.

    Raises:
        UserError: the path is a URL.
    """
    return as_local_path(path, "weights are mapped into memory")


def _open(path: pathlib.Path) -> TensorFile:
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == b"PK\x03\x04":
        return _open_zip(path)
    if head[8:] == b"{":
        return open_safetensors(path)
    if head[:1] == b"{":
        return _open_index(path)
    if head[:1] in STARTS:
        return open_msgpack(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UserError(
            f"{path}: a bare pickle, as torch wrote before 1.6; reading it could execute code. "
            "If you trust the file, load it with torch and save it again with torch.save or as "
            "safetensors"
        )
    raise UserError(
        f"{path}: expected safetensors, .npz, a torch archive, a checkpoint of Flax or an index of "
        f"shards; found a file that starts with {head!r}"
    )


def read_json(path: StrPath) -> dict[str, Any]:
    """Reads an object from a JSON file.

    Raises:
        UserError: the file cannot be read or does not contain an object.
    """
    try:
        content = json.loads(as_path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; found {type(content).__name__}")
    return content


def _resolve(path: pathlib.Path) -> pathlib.Path:
    """The file itself, or the weights within a folder."""
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
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: expected a zip archive; found a damaged one ({error})") from None
    names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return open_torch(path, archive)
    if any(name.endswith(".npy") for name in names):
        return open_npz(path, archive)
    raise UserError(
        f"{path}: expected a zip archive with .npy arrays or with torch's data.pkl; "
        f"found {', '.join(names[:5]) or 'an empty one'}"
    )


def _open_index(path: pathlib.Path) -> TensorFile:
    """Opens a Hugging Face index: {"weight_map": {tensor: file beside the index}}."""
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
    return TensorFile(path, {key: shards[name].tensor(key) for key, name in places.items()})
