"""Writing of one shard of a prepared data set, see `data.preparation`."""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from vit_jax.atomic_files import atomic_write
from vit_jax.data.broken import named
from vit_jax.data.images import MAX_PIXELS, EncodedImage, read_image
from vit_jax.data.sources import Source, open_source
from vit_jax.data.sources.array_record import WRITER_OPTIONS, pack
from vit_jax.errors import UserError

LABELS_SUFFIX = ".labels.npy"
_NAMED = 20  # maximum number of broken examples that the manifest names per shard
_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class Job:
    """Work of writing one shard.

    Attributes:
        spec: spec of the source.
        path: path of the shard.
        format: a key of `WRITERS`.
        first: first example of the source.
        last: example after the last one.
        image_size: see `preparation.prepare`.
        quality: see `preparation.prepare`.
        max_image_pixels: see `preparation.prepare`.
    """

    spec: str
    path: str
    format: str
    first: int
    last: int
    image_size: int
    quality: int
    max_image_pixels: int


def write(job: Job) -> tuple[str, dict[str, Any]]:
    """Writes a shard atomically.

    Returns:
        The name of the shard and its entry in the manifest.
    """
    reasons: list[str] = []
    labels: list[int] = []
    source = _open(job.spec)

    def good() -> Iterator[tuple[dict[str, Any], bytes]]:
        for index in range(job.first, job.last):
            try:
                example = dict(source[index])
                image = encode(
                    example.pop("image"), job.image_size, job.quality, job.max_image_pixels
                )
                example = _plain({"key": f"{index:09d}", **example})
            except (UserError, OSError) as error:
                reasons.append(named(error, index))
                continue
            labels.append(example.get("label", -1))
            yield example, image

    with atomic_write(job.path) as partial:
        examples = WRITERS[job.format](partial, job.first, good())
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if source.class_names is not None and min(labels, default=-1) >= 0:
            with atomic_write(f"{job.path}{LABELS_SUFFIX}") as array:
                save_array(array, np.array(labels, np.int32))
        size = partial.stat().st_size
    entry = {"examples": examples, "bytes": size, "sha256": digest}
    return posixpath.basename(job.path), {
        **entry,
        "broken": len(reasons),
        "broken_named": reasons[:_NAMED],
    }


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes a .npy file, whatever the suffix of its name."""
    with path.open("wb") as file:
        np.save(file, array)


@functools.lru_cache(maxsize=1)
def _open(spec: str) -> Source:
    """Opens a source once for all shards that a worker writes."""
    return open_source(spec)


def encode(image: Any, image_size: int, quality: int, max_image_pixels: int = MAX_PIXELS) -> bytes:
    """Encodes an image, scaled down where its shortest side is above `image_size`.

    Every image is decoded, so that broken ones are found now. Images with alpha are written as PNG,
    and so are decoded images that need no change; others are written as JPEG.

    Args:
        image: image of any kind, see `read_image`.
        image_size: maximum of the shortest side, px; 0 for any size.
        quality: JPEG quality; 0 keeps encoded images that need no scaling.
        max_image_pixels: largest number of pixels; 0 for any.

    Returns:
        Content of an image file.

    Raises:
        UserError: the image cannot be decoded.
    """
    pixels = read_image(image, max_pixels=max_image_pixels)
    height, width = pixels.shape[:2]
    scale = image_size / min(height, width) if image_size else 1.0
    if scale >= 1 and not quality and isinstance(image, EncodedImage):
        return image.data
    pil = Image.fromarray(pixels)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pil = pil.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    if pixels.shape[-1] == 4 or (scale >= 1 and not quality):
        pil.save(stream, "PNG")
    else:
        pil.save(stream, "JPEG", quality=quality or _QUALITY)
    return stream.getvalue()


def _write_array_record(
    path: pathlib.Path, first: int, examples: Iterator[tuple[dict[str, Any], bytes]]
) -> int:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
    count = 0
    for example, image in examples:
        writer.write(pack(example, image))
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
            members["json"] = json.dumps(example).encode()
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")  # no time: reproducible bytes
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return count


WRITERS = {"array_record": _write_array_record, "tar": _write_tar}
"""Writers by format: (path, number of the first example, examples) -> examples written."""


def _plain(example: dict[str, Any]) -> dict[str, Any]:
    """Fields of an example that both formats can hold.

    Raises:
        UserError: a text is not Unicode.
    """
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in example.items()}
    plain = {k: v for k, v in plain.items() if isinstance(v, str | int | float | list)}
    try:
        msgpack.packb(plain)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{example['key']} cannot be written: {error}") from error
    return plain


def _suffix(image: bytes) -> str:
    try:
        kind = (Image.open(io.BytesIO(image)).format or "").lower()
    except OSError as error:
        raise UserError(f"not an image: {error}") from error
    return {"jpeg": "jpg", "tiff": "tif"}.get(
        kind, kind if kind in ("png", "webp", "gif") else "bmp"
    )
