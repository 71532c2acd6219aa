"""Thumbnails of stored predictions, for the page's template."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.evaluators.outcomes import FALSE
from vit_jax.evaluators.predictions import Arrays

PAGE_BYTES = 1_800_000
"""Bytes of all images of a page, a third more as text; Bokeh's scripts take 1.7 MB."""


@dataclasses.dataclass(frozen=True)
class Shot:
    """An image with its caption.

    Attributes:
        image: data URI.
        lines: lines of the caption.
        right: whether it is correct; None where this is no question.
    """

    image: str
    lines: tuple[str, ...] = ()
    right: bool | None = None


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
        shots.append(Shot(data_uri(images[number]), lines, right=False))
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
        shots.append(Shot(data_uri(images[number]), (name + score,), right=False))
    return shots


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
