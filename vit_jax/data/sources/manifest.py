"""`manifest.json` of a prepared set, which describes the shards of its folder."""

import json
import posixpath
from typing import Any

from vit_jax.data.sources import files
from vit_jax.data.sources.classes import read_lines
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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return found if isinstance(found, dict) and isinstance(found.get("shards"), dict) else None


def class_names(fs: Any, shards: list[str], classes: str | None) -> list[str] | None:
    """Names of the classes of shards.

    Args:
        fs: fsspec file system of the shards.
        shards: paths within it.
        classes: path or URL of a file with one name per line; None to use the manifests beside the
            shards.

    Returns:
        One name per label; None where there is neither file nor manifest.

    Raises:
        UserError: a line of the file is empty, a file cannot be read, or manifests of several
            folders have different classes.
    """
    if classes is not None:
        return read_lines(classes)
    found: dict[str, list[str]] = {}
    for folder in dict.fromkeys(posixpath.dirname(path) for path in shards):
        manifest = load(fs, folder)
        if manifest is None or (names := manifest.get("class_names")) is None:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{folder}/{FILE_NAME}: class_names is not a list of names")
        found[folder] = names
    folders = list(found)
    for folder in folders[1:]:
        if found[folder] != found[folders[0]]:
            raise UserError(
                f"{folders[0]} and {folder} were prepared with different classes: open them as two "
                "sources, joined by ` + `"
            )
    return found[folders[0]] if folders else None
