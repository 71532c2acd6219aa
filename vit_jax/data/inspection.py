"""Survey of a data source: what its images, captions and classes are, and which are broken."""

import collections
import concurrent.futures
import dataclasses
import io
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data import duplicates
from vit_jax.data.contact_sheet import SIDE
from vit_jax.data.images import MAX_PIXELS, EncodedImage, read_image
from vit_jax.data.progress import progress
from vit_jax.data.sources import Source
from vit_jax.data.sources.base import check_captions
from vit_jax.data.tokenizers.encoder import Encoder
from vit_jax.errors import UserError, printable

_LISTED = 10  # groups, reasons and captions that are listed
_LARGE = 50_000_000  # pixels of images that are decoded one at a time
_one_large = threading.Lock()


@dataclasses.dataclass
class _Found:
    """An example that was read, or the reason why it is broken."""

    key: str
    error: str = ""
    size: tuple[int, int] = (0, 0)
    kind: str = ""
    transparent: bool = False
    fingerprint: duplicates.Fingerprint | None = None
    captions: Sequence[str] = ()
    label: int | None = None
    thumbnail: Image.Image | None = None


def spread(count: int, wanted: int) -> list[int]:
    """Rows at equal distances over a source.

    Args:
        count: number of examples of the source.
        wanted: number of rows; 0, or more than there are, for all.
    """
    if not 0 < wanted < count:
        return list(range(count))
    return [count * i // wanted for i in range(wanted)]


def inspect(
    source: Source,
    *,
    examples: int = 0,
    thumbnails: int = 0,
    max_image_pixels: int = MAX_PIXELS,
    encoder: Encoder | None = None,
    context_length: int = 77,
) -> tuple[dict[str, Any], list[tuple[Image.Image, str]]]:
    """Reads and decodes the examples of a source.

    Args:
        source: source.
        examples: number of examples, evenly spread; 0 for all.
        thumbnails: number of examples that are returned as small images.
        max_image_pixels: pixels above which an image counts as broken; 0 for any number.
        encoder: vocabulary for the lengths of captions in tokens; None for none.
        context_length: number of tokens above which captions are counted as truncated.

    Returns:
        The report, JSON values, and image and text of the thumbnails.
    """
    rows = spread(len(source), examples)
    shown = {rows[i] for i in spread(len(rows), thumbnails)} if thumbnails else set()

    def read(row: int) -> _Found:
        return _read(source, row, max_image_pixels, row in shown)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(progress(pool.map(read, rows), "Reading examples", total=len(rows)))
    good = [example for example in found if not example.error]
    report: dict[str, Any] = {
        "examples": len(source),
        "read": len(found),
        "broken": _broken([example for example in found if example.error]),
        "images": _images(good),
        "duplicates": _duplicates(good),
        "captions": _captions(good, encoder, context_length),
        "classes": _classes(good, source.class_names),
    }
    cells = [
        (example.thumbnail, example.captions[0] if example.captions else example.key)
        for example in good
        if example.thumbnail is not None
    ]
    return report, cells


def _read(source: Source, row: int, max_pixels: int, keep: bool) -> _Found:
    key = f"example {row}"
    try:
        example = source[row]
        key = str(example.get("key", key))
        image = example["image"]
        captions = check_captions(example.get("captions"), key)
        if isinstance(image, EncodedImage):
            image = dataclasses.replace(image, max_pixels=max_pixels)
            height, width = image.shape
            if height * width > _LARGE:
                with _one_large:
                    return _decoded(key, image, example, captions, max_pixels, keep)
        return _decoded(key, image, example, captions, max_pixels, keep)
    except (UserError, OSError) as error:
        return _Found(key, error=str(error) or type(error).__name__)


def _decoded(
    key: str, image: Any, example: dict[str, Any], captions: list[str], max_pixels: int, keep: bool
) -> _Found:
    pixels = read_image(image, max_pixels=max_pixels)
    thumbnail = None
    if keep:
        thumbnail = duplicates.reduced(pixels)
        thumbnail.thumbnail((SIDE, SIDE))
    return _Found(
        key,
        size=pixels.shape[:2],
        kind=_kind(image, pixels),
        transparent=pixels.shape[-1] == 4,
        fingerprint=duplicates.fingerprint(pixels),
        captions=captions or check_captions(example.get("name"), key),
        label=example.get("label"),
        thumbnail=thumbnail,
    )


def _kind(image: Any, pixels: np.ndarray) -> str:
    """Format and mode, as "PNG RGBA"."""
    if not isinstance(image, EncodedImage):
        return f"array {'RGBA' if pixels.shape[-1] == 4 else 'RGB'}"
    with Image.open(io.BytesIO(image.data)) as opened:
        return f"{opened.format} {opened.mode}"


def _broken(found: list[_Found]) -> dict[str, Any]:
    # Reasons contain the name of the example, without which they can be counted.
    reasons: dict[str, list[str]] = {}
    for example in found:
        reasons.setdefault(example.error.replace(example.key, "..."), []).append(example.key)
    most = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return {
        "count": len(found),
        "reasons": [
            {"reason": reason, "count": len(keys), "keys": keys[:_LISTED]} for reason, keys in most
        ],
    }


def _images(found: list[_Found]) -> dict[str, Any]:
    if not found:
        return {}
    sizes = np.array([example.size for example in found])
    largest = found[int(np.argmax(sizes.prod(axis=1)))]
    return {
        "height": _quantiles(sizes[:, 0]),
        "width": _quantiles(sizes[:, 1]),
        "shorter_side": _quantiles(sizes.min(axis=1)),
        "aspect_ratio": _quantiles(sizes[:, 1] / sizes[:, 0]),
        "largest": {"key": largest.key, "height": largest.size[0], "width": largest.size[1]},
        "kinds": _most_common([example.kind for example in found]),
        "transparent": sum(example.transparent for example in found),
    }


def _duplicates(found: list[_Found]) -> dict[str, Any]:
    prints = [example.fingerprint for example in found if example.fingerprint is not None]
    if not prints:
        return {}
    exact = duplicates.exact_groups([fingerprint.digest for fingerprint in prints])
    # Of equal images the first one stands for all.
    repeated = {position for group in exact for position in group[1:]}
    kept = [position for position in range(len(prints)) if position not in repeated]
    near = duplicates.near_groups(
        np.array([prints[position].phash for position in kept], np.uint64),
        np.stack([prints[position].thumbnail for position in kept]),
    )
    near = [[kept[position] for position in group] for group in near]
    return {"exact": _groups(exact, found), "near": _groups(near, found)}


def _groups(groups: list[list[int]], found: list[_Found]) -> dict[str, Any]:
    return {
        "groups": len(groups),
        "redundant": sum(len(group) - 1 for group in groups),
        "largest": [
            {"size": len(group), "keys": [found[position].key for position in group[:_LISTED]]}
            for group in groups[:_LISTED]
        ],
    }


def _captions(found: list[_Found], encoder: Encoder | None, context: int) -> dict[str, Any]:
    captions = [text for example in found for text in example.captions]
    without = sum(not example.captions for example in found)
    if not captions:
        return {"count": 0, "examples_without": without}
    first = [example.captions[0] for example in found if example.captions]
    report: dict[str, Any] = {
        "count": len(captions),
        "examples_without": without,
        "distinct": len(set(captions)),
        "examples_with_the_same": len(first) - len(set(first)),
        "most_common": _most_common(captions),
        "characters": _quantiles(np.array([len(text) for text in captions])),
    }
    if encoder is not None:
        marks = encoder.layout(encoder.size()).marks
        lengths = np.array([len(ids) + marks for ids in encoder.encode(captions)])
        report["tokens"] = _quantiles(lengths) | {
            "context_length": context,
            "truncated": int((lengths > context).sum()),
        }
    return report


def _classes(found: list[_Found], names: list[str] | None) -> dict[str, Any]:
    if names is None:
        return {}
    counts = collections.Counter(example.label for example in found)
    by_class = {name: counts.get(label, 0) for label, name in enumerate(names)}
    sizes = np.array(list(by_class.values()))
    return {
        "count": len(names),
        "without_label": counts.get(None, 0),
        "without_examples": int((sizes == 0).sum()),
        "examples_per_class": _quantiles(sizes),
        "counts": by_class,
    }


def _most_common(values: list[str]) -> dict[str, int]:
    return {
        printable(value): count for value, count in collections.Counter(values).most_common(_LISTED)
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    names = {"minimum": 0, "median": 50, "p95": 95, "maximum": 100}
    return {name: round(float(np.percentile(values, q)), 3) for name, q in names.items()}
