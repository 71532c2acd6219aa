"""`manifest.json` of a prepared set, which describes the shards of its folder."""

import json
import posixpath
from typing import Any

from vit_jax.data.sources import files
from vit_jax.data.sources.base import decode_text
from vit_jax.errors import UserError

FILE_NAME = "manifest.json"


def load(fs: Any, folder: str) -> dict[str, Any] | None:
    """Reads the manifest of a folder.

    Args:
        fs: fsspec file system.
        folder: path within it.

    Returns:
        The manifest; None where the folder has none that `data.prepare` wrote.

    Raises:
        UserError: the file is not JSON or cannot be read.
    """
    path = posixpath.join(folder, FILE_NAME)
    if not files.is_file(fs, path):
        return None
    try:
        found = json.loads(files.read(fs, path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return found if isinstance(found, dict) and "shards" in found else None


def class_names(fs: Any, shards: list[str], classes: str | None) -> list[str] | None:
    """Names of the classes of shards.

    Args:
        fs: fsspec file system of the shards.
        shards: paths within it.
        classes: path or URL of a file with one name per line; None to use the manifest beside the
            first shard.

    Returns:
        One name per label; None where there is neither file nor manifest.

    Raises:
        UserError: a line of the file is empty, or a file cannot be read.
    """
    if classes is not None:
        own, path = files.file_system(classes)
        names = decode_text(files.read(own, path), classes).splitlines()
        if not all(name.strip() for name in names) or not names:
            raise UserError(f"{classes}: expected the name of a class on every line")
        return [name.strip() for name in names]
    found = load(fs, posixpath.dirname(shards[0]))
    return found.get("class_names") if found else None
