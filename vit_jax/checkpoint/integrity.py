"""Integrity of checkpoints: verified once after writing, by checksums ever after.

Files on disk are read. Objects in a bucket are not: the bucket has verified what it received, and
its own checksums are compared.
"""

import hashlib
import json
import pathlib
from typing import Any

import tensorstore as ts
from etils import epath

from vit_jax.paths import StrPath, absolute, as_path, is_url, list_objects

FILE_NAME = "checksums.json"  # in a checkpoint, for all files of its items
_TIMES = "_CHECKPOINT_METADATA"  # written last by Orbax
_DATABASE = "manifest.ocdbt"  # in each folder of arrays


class Damaged(Exception):
    """A checkpoint that cannot be read; the message names the file."""


def seal(checkpoint: StrPath) -> None:
    """Reads a new checkpoint and writes its checksums, so that later damage is found.

    Args:
        checkpoint: folder of the checkpoint, before it is complete.

    Raises:
        Damaged: a file cannot be read.
    """
    folder = as_path(checkpoint)
    if not is_url(folder):
        _read_arrays(folder)
    text = json.dumps(_fingerprints(folder), indent=1, sort_keys=True)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def check(checkpoint: StrPath, part: str = "") -> None:
    """Compares a checkpoint with its checksums; one without checksums must be readable.

    Args:
        checkpoint: folder of the checkpoint.
        part: prefix of the files to check, as "params/"; "" for all.

    Raises:
        Damaged: a file is missing, truncated or changed.
        PermissionError: a file may not be read, which does not mean that it is damaged.
    """
    folder = as_path(checkpoint)
    _load_json(folder / _TIMES)
    if not (folder / FILE_NAME).exists():
        _read_arrays(folder)
        return
    expected = _load_json(folder / FILE_NAME)
    found = _fingerprints(folder, part)
    for name, value in expected.items():
        if not name.startswith(part):
            continue
        if name not in found:
            raise Damaged(f"{name} is missing")
        if found[name]["bytes"] != value["bytes"]:
            raise Damaged(f"{name} has {found[name]['bytes']} of {value['bytes']} bytes")
        if found[name] != value:
            raise Damaged(f"{name} has changed since it was written")


def _load_json(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except ValueError:
        raise Damaged(f"{path.name} cannot be read") from None


def _fingerprints(checkpoint: epath.Path, part: str = "") -> dict[str, dict[str, int | str]]:
    """Sizes and checksums of the files of a checkpoint's items whose names start with `part`."""
    if is_url(checkpoint):
        objects = list_objects(checkpoint)
        return {k: v for k, v in objects.items() if "/" in k and k.startswith(part)}
    folder = pathlib.Path(checkpoint)
    files = {p.relative_to(folder).as_posix(): p for p in folder.glob("*/**/*") if p.is_file()}
    return {
        name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for name, path in files.items()
        if name.startswith(part)
    }


def _digest(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        raise
    except OSError as error:  # a bad sector
        raise Damaged(f"{path.name}: {error.strerror}") from error


def _read_arrays(checkpoint: epath.Path) -> None:
    """Reads every chunk of every array, one at a time, through the index that lists them."""
    for index in sorted(checkpoint.glob(f"*/{_DATABASE}")):
        folder = str(absolute(index.parent))
        base = folder if is_url(folder) else f"file://{folder}"
        try:
            store = ts.KvStore.open({"driver": "ocdbt", "base": f"{base}/"}).result()
            for key in store.list().result():
                store.read(key).result()
        except ValueError as error:
            raise Damaged(f"{index.parent.name}: {str(error).split(' [')[0]}") from error
