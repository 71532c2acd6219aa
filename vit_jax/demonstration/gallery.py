"""A folder of images that is searched by words or by an image."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from vit_jax.atomic_files import atomic_write
from vit_jax.data.cache import cache_dir, find_cached
from vit_jax.demonstration.subject import Subject
from vit_jax.detection.images import list_images
from vit_jax.errors import UserError
from vit_jax.evaluators.cache import digest, weights_fingerprint

logger = logging.getLogger(__name__)

_BATCH = 16  # images
# (done, total), called after each batch.
Progress = Callable[[int, int], Any]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images of a folder with their embeddings.

    Attributes:
        paths: readable images.
        embeddings: unit length, (n, D).
        broken: images that cannot be read.
    """

    paths: list[str]
    embeddings: Float32[np.ndarray, "images dim"]
    broken: list[str]

    def search(
        self, query: Float32[np.ndarray, " dim"], count: int = 12
    ) -> list[tuple[str, float]]:
        """Finds the images that are most similar to a query.

        Args:
            query: embedding of unit length.
            count: number of images.

        Returns:
            Path and cosine similarity, the most similar one first.
        """
        cosines = self.embeddings @ query
        best = np.argsort(-cosines, kind="stable")[:count]
        return [(self.paths[i], float(cosines[i])) for i in best]


def open_gallery(
    subject: Subject, folder: str, progress: Progress = lambda done, total: None
) -> Gallery:
    """Embeds the images of a folder and its sub-folders.

    Embeddings are kept in the user's cache, by weights, path, size and time of change: a second
    call reads no image, and a further image costs itself alone.

    Args:
        subject: model that encodes images.
        folder: local folder.
        progress: see `Progress`.

    Raises:
        UserError: no folder, a folder without images, or none that can be read.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: expected a folder with images; found none")
    paths = [os.path.abspath(path) for path in list_images(folder).sources]
    version = repr((subject.model.spec.inputs, subject.model.spec.architecture))
    weights = weights_fingerprint(subject.model.params)
    name = f"demo/{digest(weights, version, os.path.abspath(folder))}.npz"
    keys = [_key(path) for path in paths]
    known = _read(name)
    missing = [i for i, key in enumerate(keys) if key not in known]
    for rows in _batches(missing, _BATCH):
        found = _embed(subject, [paths[i] for i in rows])
        known |= zip([keys[i] for i in rows], found, strict=True)
        progress(len(paths) - len(missing) + missing.index(rows[-1]) + 1, len(paths))
    if missing:
        _write(name, {key: known[key] for key in keys})
    embeddings = np.stack([known[key] for key in keys])
    finite = np.isfinite(embeddings).all(axis=1)
    good = np.flatnonzero(finite).tolist()
    if not good:
        raise UserError(f"{folder}: none of {len(paths)} images can be read")
    broken = [paths[i] for i in np.flatnonzero(~finite)]
    return Gallery([paths[i] for i in good], embeddings[good], broken)


def _embed(subject: Subject, paths: Sequence[str]) -> Float32[np.ndarray, "images dim"]:
    """Embeddings of images; NaN for those that cannot be read."""
    blank = subject.model.preprocess(np.zeros((1, 1, 3), np.uint8))
    inputs = np.stack([blank] * _BATCH)
    broken = []
    for row, path in enumerate(paths):
        try:
            inputs[row] = subject.model.preprocess(path)
        except UserError as error:
            logger.warning("%s is left out: %s", path, error)
            broken.append(row)
    found = np.array(subject.model.encode_image(inputs), np.float32)[: len(paths)]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    found[broken] = np.nan
    return found


def _key(path: str) -> str:
    stat = os.stat(path)
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def _batches(rows: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _read(name: str) -> dict[str, np.ndarray]:
    path = find_cached(name)
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return dict(zip(stored["keys"].tolist(), stored["rows"], strict=True))


def _write(name: str, known: dict[str, np.ndarray]) -> None:
    path = cache_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, keys=np.array(list(known)), rows=np.stack(list(known.values())))
