"""Integrity of checkpoints on disk: verified once after writing, by checksums ever after."""

import hashlib
import json
import pathlib
from typing import Any

import tensorstore as ts

FILE_NAME = "checksums.json"  # in a checkpoint, for all files of its items
_TIMES = "_CHECKPOINT_METADATA"  # written last by Orbax
_DATABASE = "manifest.ocdbt"  # in each folder of arrays


class Damaged(Exception):
    """A checkpoint that cannot be read; the message names the file."""


def seal(checkpoint: pathlib.Path) -> None:
    """Reads a new checkpoint and writes its checksums, so that later damage is found.

    Args:
        checkpoint: folder of the checkpoint, before it gets its final name.

    Raises:
        Damaged: a file cannot be read.
    """
    _read_arrays(checkpoint)
    text = json.dumps(_checksums(checkpoint), indent=1, sort_keys=True)
    (checkpoint / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def check(checkpoint: pathlib.Path, part: str = "") -> None:
    """Compares a checkpoint with its checksums; one without checksums must be readable.

    Args:
        checkpoint: folder of the checkpoint.
        part: prefix of the files to check, as "params/"; "" for all.

    Raises:
        Damaged: a file is missing, truncated or changed.
        PermissionError: a file may not be read, which does not mean that it is damaged.
    """
    _load_json(checkpoint / _TIMES)
    if not (checkpoint / FILE_NAME).exists():
        _read_arrays(checkpoint)
        return
    expected = _load_json(checkpoint / FILE_NAME)
    wanted = {name: value for name, value in expected.items() if name.startswith(part)}
    for name, value in wanted.items():
        path = checkpoint / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != value["bytes"]:
            raise Damaged(f"{name} has {path.stat().st_size} of {value['bytes']} bytes")
        if _digest(path) != value["sha256"]:
            raise Damaged(f"{name} has changed since it was written")


def _load_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except ValueError:
        raise Damaged(f"{path.name} cannot be read") from None


def _checksums(checkpoint: pathlib.Path) -> dict[str, dict[str, int | str]]:
    return {
        path.relative_to(checkpoint).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _digest(path),
        }
        for path in checkpoint.glob("*/**/*")
        if path.is_file()
    }


def _digest(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        raise
    except OSError as error:  # a bad sector
        raise Damaged(f"{path.name}: {error.strerror}") from error


def _read_arrays(checkpoint: pathlib.Path) -> None:
    """Reads every chunk of every array, one at a time, through the index that lists them."""
    for index in sorted(checkpoint.glob(f"*/{_DATABASE}")):
        try:
            store = ts.KvStore.open(
                {"driver": "ocdbt", "base": f"file://{index.parent.resolve()}/"}
            ).result()
            for key in store.list().result():
                store.read(key).result()
        except ValueError as error:
            raise Damaged(f"{index.parent.name}: {str(error).split(' [')[0]}") from error
