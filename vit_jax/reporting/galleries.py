"""Thumbnails of stored predictions, for the page's template."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from PIL import Image

from vit_jax.evaluators.outcomes import FALSE
from vit_jax.evaluators.predictions import Arrays

PAGE_BYTES = 1_800_000
"""Bytes of all images of a page, a third more as text; Bokeh's scripts take 1.7 MB."""

_SMALLEST, _MOSAIC = 96, 560  # px of images with attention, and of a mosaic


@dataclasses.dataclass(frozen=True)
class Shot:
    """An image with its caption.

    Attributes:
        image: data URI.
        lines: lines of the caption.
    """

    image: str
    lines: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Query:
    """A query with its nearest candidates.

    Attributes:
        query: image or text.
        correct: one of the correct candidates.
        rank: rank of the nearest correct one.
        top: nearest candidates: image or text, score, whether it is correct.
    """

    query: Shot | str
    correct: Shot | str
    rank: int
    top: tuple[tuple[Shot | str, float, bool], ...]


def data_uri(image: bytes) -> str:
    """Makes the address of an image that is part of the page.

    Args:
        image: a JPEG or PNG file.
    """
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def fitting(sizes: Sequence[int], share: int) -> int:
    """Counts how many items fit from the first on.

    Args:
        sizes: bytes of each.
        share: bytes of all.
    """
    return int(np.searchsorted(np.cumsum(sizes), share, side="right"))


def mistakes(arrays: Arrays, share: int) -> list[Shot]:
    """The mistakes of the highest probability.

    Args:
        arrays: stored predictions of the kind "classification".
        share: largest number of bytes.
    """
    images = arrays["worst_image"].tolist()
    names, shots = arrays["class"], []
    for number in range(fitting([*map(len, images)], share)):
        position = arrays["worst"][number]
        label, top = arrays["label"][position], arrays["top"][position, 0]
        says, is_ = arrays["probability"][position, 0], arrays["label_probability"][position]
        lines = (f"{names[top]} {says:.2f}", f"is {names[label]} {is_:.2f}")
        shots.append(Shot(data_uri(images[number]), lines))
    return shots


def box_gallery(arrays: Arrays, outcome: str, share: int) -> list[Shot]:
    """False or missed boxes.

    Args:
        arrays: stored predictions of the kind "detection".
        outcome: one of `outcomes.OUTCOMES`.
        share: largest number of bytes.
    """
    shown = arrays["shown"]
    chosen = np.flatnonzero(arrays["outcome"][shown] == outcome)
    images = [arrays["shown_image"][i] for i in chosen]
    shots = []
    for number in range(fitting([*map(len, images)], share)):
        position = shown[chosen[number]]
        name = str(arrays["class"][arrays["class_index"][position]])
        score = f" {arrays['score'][position]:.2f}" if outcome == FALSE else ""
        shots.append(Shot(data_uri(images[number]), (name + score,)))
    return shots


def attention(arrays: Arrays, share: int) -> list[list[Shot]]:
    """Images with their attention: a row of the image, the rollout and the heads of the last block.

    Args:
        arrays: stored view of the kind "attention".
        share: largest number of bytes.
    """
    rows = []
    for image, rollout, heads in zip(
        arrays["image"], arrays["rollout"], arrays["heads"], strict=True
    ):
        titles = ("rollout", *(f"head {i + 1}" for i in range(len(heads))))
        maps = zip(titles, (rollout, *heads), strict=True)
        row = [(image, ""), *((overlay(image, each), title) for title, each in maps)]
        rows.append(row)
    sizes = [sum(len(image) for image, _ in row) for row in rows]
    return [
        [Shot(data_uri(image), (title,)) for image, title in row]
        for row in rows[: fitting(sizes, share)]
    ]


def overlay(image: bytes, weights: Float[np.ndarray, "rows columns"]) -> bytes:
    """Colours an image by weights of its patches, of which the largest one is brightest.

    Args:
        image: JPEG file.
        weights: weight of each patch, not negative.

    Returns:
        A JPEG file, enlarged by a whole number if the image is small.
    """
    with Image.open(io.BytesIO(image)) as opened:
        grey = opened.convert("L")
    factor = max(1, _SMALLEST // max(grey.size))
    size = grey.width * factor, grey.height * factor
    scaled = Image.fromarray((weights / max(weights.max(), 1e-30)).astype(np.float32))
    heat = np.asarray(scaled.resize(size, Image.Resampling.BILINEAR))
    colors = colormaps["inferno"](heat.clip(0, 1))[..., :3]
    base = np.asarray(grey.resize(size, Image.Resampling.NEAREST))[..., None] / 255
    return _encode(0.35 * base + 0.65 * colors, "JPEG")


def mosaic(similarity: Float[np.ndarray, "rows columns height width"]) -> bytes:
    """Draws a map per position, in the order of the positions, from the smallest value to 1.

    Args:
        similarity: cosine similarity of each position with all others.

    Returns:
        A PNG file, enlarged by a whole number.
    """
    rows, columns, height, width = similarity.shape
    factor = max(1, _MOSAIC // max(rows * height, columns * width))
    large = similarity.repeat(factor, axis=2).repeat(factor, axis=3)
    framed = np.pad(large, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    whole = framed.swapaxes(1, 2).reshape(rows * framed.shape[2], -1)
    low = min(float(similarity.min()), 1 - 1e-6)
    colors = colormaps["viridis"]((whole - low) / (1 - low))
    return _encode(np.where(np.isnan(whole)[..., None], 1, colors[..., :3]), "PNG")


def _encode(colors: Float[np.ndarray, "height width 3"], kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.rint(colors * 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, kind, **({"quality": 80} if kind == "JPEG" else {}))
    return file.getvalue()


def reconstructions(arrays: Arrays, share: int) -> list[list[Shot]]:
    """Images, what a masked autoencoder saw of them, and its reconstructions.

    Args:
        arrays: stored view of the kind "reconstruction".
        share: largest number of bytes.
    """
    names = ("image", "masked", "reconstructed")
    rows = [*zip(*(arrays[name].tolist() for name in names), strict=True)]
    return [
        [Shot(data_uri(image), (name,)) for name, image in zip(names, row, strict=True)]
        for row in rows[: fitting([sum(map(len, row)) for row in rows], share)]
    ]


def captioned(arrays: Arrays, share: int) -> list[list[Shot]]:
    """Rows of images with captions.

    Args:
        arrays: stored predictions of the kind "segmentation" or "grounding".
        share: largest number of bytes.
    """
    rows = [*zip(arrays["shot"].tolist(), arrays["caption"].tolist(), strict=True)]
    return [
        [Shot(data_uri(image), (caption,)) for image, caption in zip(*row, strict=True)]
        for row in rows[: fitting([sum(map(len, images)) for images, _ in rows], share)]
    ]


def queries(arrays: Arrays, direction: str, share: int) -> list[Query]:
    """Queries from the best to the worst rank, with their nearest candidates.

    Args:
        arrays: stored predictions of the kind "retrieval".
        direction: "image_to_text" or "text_to_image".
        share: largest number of bytes.
    """
    columns = ("query", "correct", "query_rank", "top", "top_score", "top_correct")
    rows = [*zip(*(arrays[f"{direction}_{name}"] for name in columns), strict=True)]
    sizes = [sum(map(_size, [row[0], row[1], *row[3]])) for row in rows]
    return [
        Query(
            _shown(query),
            _shown(correct),
            int(rank),
            tuple(
                (_shown(each), float(score), bool(right))
                for each, score, right in zip(top, scores, rights, strict=True)
            ),
        )
        for query, correct, rank, top, scores, rights in rows[: fitting(sizes, share)]
    ]


def _size(value: Any) -> int:
    return len(value) if isinstance(value, bytes) else 0


def _shown(value: Any) -> Shot | str:
    return Shot(data_uri(bytes(value))) if isinstance(value, bytes) else str(value)
