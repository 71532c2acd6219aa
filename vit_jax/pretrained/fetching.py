"""Weights in buckets: downloaded once to the user's cache, since weights are mapped into memory."""

import hashlib
import json
import logging
import pathlib
from typing import TYPE_CHECKING

from vit_jax.atomic_files import atomic_write
from vit_jax.checkpoint.manager import DIRECTORY
from vit_jax.data.cache import cache_dir
from vit_jax.errors import UserError
from vit_jax.paths import StrPath, as_path, checksum, download, is_url
from vit_jax.weights.containers.reading import FOLDER_NAMES, SEPARATOR, local_weights
from vit_jax.workdir import workdir_path

if TYPE_CHECKING:
    from etils import epath

logger = logging.getLogger(__name__)

# Files beside weights: architecture, preprocessing, tokenizer.
_DESCRIPTIONS = (".json", ".txt", ".model")


def fetch_weights(path: StrPath) -> "pathlib.Path | epath.Path":
    """Returns a local path of weights; those in a bucket are downloaded, unless the cache has them.

    With a file come the descriptions beside it, with an index its shards. A run stays where it is:
    its checkpoints are read there.

    Args:
        path: weight file or folder, local or in a bucket, or workdir of a run; `PATH#KEY` as for
            `open_weights`.

    Raises:
        UserError: there are no weights, or a run in a bucket that cannot hold one.
    """
    whole = as_path(path)
    if not is_url(whole):
        return local_weights(path)
    place, separator, key = str(whole).partition(SEPARATOR)
    if (as_path(place) / DIRECTORY).is_dir():
        return workdir_path(place)
    file = _weight_file(as_path(place))
    names = [file.name, *_shards(file)]
    beside = [p.name for p in file.parent.iterdir() if p.suffix in _DESCRIPTIONS]
    names += [name for name in sorted(beside) if name not in names]
    versions = [[name, checksum(file.parent / name)] for name in names]
    stamps = json.dumps([str(file.parent), versions])
    folder = cache_dir() / "weights" / hashlib.sha256(stamps.encode()).hexdigest()[:32]
    for name in names:
        if not (folder / name).exists():
            logger.info("Downloading %s to %s.", file.parent / name, folder)
            with atomic_write(folder / name) as partial:
                download(file.parent / name, partial)
    return folder / f"{file.name}{separator}{key}"


def _weight_file(place: "epath.Path") -> "epath.Path":
    """The file itself, or the weights within a folder."""
    if not place.is_dir():
        if not place.exists():
            raise UserError(f"no weight file at {place}")
        return place
    found = next((place / name for name in FOLDER_NAMES if (place / name).exists()), None)
    if found is None:
        raise UserError(f"{place}: expected one of {', '.join(FOLDER_NAMES)} in it")
    return found


def _shards(file: "epath.Path") -> list[str]:
    """Names of the files of an index of shards."""
    if not file.name.endswith(".index.json"):
        return []
    index = json.loads(file.read_text())
    return sorted({pathlib.PurePath(name).name for name in index.get("weight_map", {}).values()})
