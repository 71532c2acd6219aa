"""Writes one shard of a prepared set. See `data.preparation`."""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.atomic_files import atomic_write
from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import Source, open_source
from vit_jax.data.sources.array_record import WRITER_OPTIONS, pack
from vit_jax.errors import UserError

LABELS_SUFFIX = ".labels.npy"
_NAMED = 20  # broken examples that the manifest names, a shard
_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard: examples [first, last) of a source; sizes as in `preparation.prepare`."""

    spec: str
    path: str
    format: str
    first: int
    last: int
    image_size: int
    quality: int


def write(job: Job) -> tuple[str, dict[str, Any]]:
    """Writes a shard, which appears whole; returns its name and entry of the manifest."""
    path = pathlib.Path(job.path)
    reasons: list[str] = []
    labels: list[int] = []
    source = _open(job.spec)

    def good() -> Iterator[tuple[dict[str, Any], bytes]]:
        for index in range(job.first, job.last):
            try:
                example = dict(source[index])
                image = encode(example.pop("image"), job.image_size, job.quality)
            except (UserError, OSError) as error:
                reasons.append(str(error))
                continue
            example.setdefault("key", f"{index:09d}")
            labels.append(example.get("label", -1))
            yield example, image

    with atomic_write(path) as partial:
        examples = WRITERS[job.format](partial, job.first, good())
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if source.class_names is not None and min(labels, default=-1) >= 0:
            np.save(f"{path}{LABELS_SUFFIX}", np.array(labels, np.int32))
    entry = {"examples": examples, "bytes": path.stat().st_size, "sha256": digest}
    return path.name, {**entry, "broken": len(reasons), "broken_named": reasons[:_NAMED]}


@functools.lru_cache(maxsize=1)
def _open(spec: str) -> Source:
    """A worker writes many shards of one source."""
    return open_source(spec)


def encode(image: EncodedImage | np.ndarray, image_size: int, quality: int) -> bytes:
    """The image's file, made smaller where its shortest side is above `image_size`.

    Decodes in any case, so that a broken image is found now. Images with transparency are
    written as PNG, as are decoded ones that need not change; others as JPEG.
    """
    pixels = image.decode() if isinstance(image, EncodedImage) else image
    height, width = pixels.shape[:2]
    scale = image_size / min(height, width) if image_size else 1.0
    if scale >= 1 and not quality and isinstance(image, EncodedImage):
        return image.data
    picture = Image.fromarray(pixels)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    if pixels.shape[-1] == 4 or (scale >= 1 and not quality):
        picture.save(stream, "PNG")
    else:
        picture.save(stream, "JPEG", quality=quality or _QUALITY)
    return stream.getvalue()


def _write_array_record(
    path: pathlib.Path, first: int, examples: Iterator[tuple[dict[str, Any], bytes]]
) -> int:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
    count = 0
    for example, image in examples:
        writer.write(pack(_plain(example), image))
        count += 1
    writer.close()
    return count


def _write_tar(
    path: pathlib.Path, first: int, examples: Iterator[tuple[dict[str, Any], bytes]]
) -> int:
    count = 0
    with tarfile.open(path, "w") as tar:
        for count, (example, image) in enumerate(examples, start=1):
            key = f"{first + count - 1:09d}"
            members = {_suffix(image): image}
            if captions := example.get("captions"):
                members["txt"] = captions[0].encode()
            if "label" in example:
                members["cls"] = str(example["label"]).encode()
            members["json"] = json.dumps(_plain(example)).encode()
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")  # the same bytes whenever it is written
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return count


WRITERS = {"array_record": _write_array_record, "tar": _write_tar}
"""Formats of shards: (path, number of the first example, examples) -> examples written."""


def _plain(example: dict[str, Any]) -> dict[str, Any]:
    """The fields that both formats can hold."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in example.items()}
    return {k: v for k, v in plain.items() if isinstance(v, str | int | float | list)}


def _suffix(image: bytes) -> str:
    try:
        kind = (Image.open(io.BytesIO(image)).format or "").lower()
    except OSError as error:
        raise UserError(f"not a picture: {error}") from error
    return {"jpeg": "jpg", "tiff": "tif"}.get(
        kind, kind if kind in ("png", "webp", "gif") else "bmp"
    )
