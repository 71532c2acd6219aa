"""Examples with boxes: what a batch needs of them, and the names that may be asked."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vit_jax.data.captions import Caption, end_phrase
from vit_jax.data.sources.base import Source, brief
from vit_jax.errors import UserError

MAX_IN_A_ROW = 100
"""Consecutive broken examples after which a search for a good one is given up."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What a batch needs of an example, without crowds.

    Attributes:
        key: name of the example in messages.
        image: image of any kind.
        boxes: x0, y0, x1, y1, px.
        names: name of each box.
        crowds: number of boxes of crowds.
        possible: names that the image shows or may show.
        negatives: names that are verified to be absent.
        vocabulary: names that may be asked.
        caption: caption with the phrase of each box, if the example has one.
        masks: mask of each box as it is stored, see `data.masks`; None for an example without.
        ignored: pixels of which is not said what they show, bool (H, W); None for no pixel.
    """

    key: str
    image: Any
    boxes: np.ndarray
    names: list[str]
    crowds: int
    possible: frozenset[str]
    negatives: Sequence[str]
    vocabulary: Sequence[str]
    caption: Caption | None = None
    masks: Sequence[Any] | None = None
    ignored: np.ndarray | None = None

    @classmethod
    def of(cls, example: dict[str, Any], *, with_crowds: bool = False) -> "Part":
        """Reads an example.

        Args:
            example: example of a source.
            with_crowds: whether crowds are kept like single objects.

        Raises:
            UserError: the example has no boxes, or not one name for each of them.
        """
        boxes, names = check_boxes(example)
        crowd = np.asarray(example.get("crowd", np.zeros(len(names))), np.bool_)
        single = ~crowd | with_crowds
        masks = example.get("segmentation")
        return cls(
            key=str(example.get("key", "an example")),
            image=example["image"],
            boxes=boxes[single],
            names=[name for name, one in zip(names, single, strict=True) if one],
            crowds=int((~single).sum()),
            possible=frozenset([*names, *example.get("not_exhaustive", ())]),
            negatives=example.get("negatives", ()),
            vocabulary=example.get("vocabulary", ()),
            caption=_caption(example, np.flatnonzero(single)),
            masks=None if masks is None else [masks[row] for row in np.flatnonzero(single)],
            ignored=example.get("ignored"),
        )


def _caption(example: dict[str, Any], rows: np.ndarray) -> Caption | None:
    """The caption of an example whose phrases have boxes, with those of some boxes."""
    if "spans" not in example:
        return None
    spans = [[(start, end) for start, end in example["spans"][row]] for row in rows]
    return Caption(end_phrase(example["captions"][0]), spans)


def check_boxes(example: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Checks the boxes of an example.

    Args:
        example: example of a source.

    Returns:
        `boxes`, float32 (n, 4), and `names`.

    Raises:
        UserError: the example has no boxes, or not one name for each of them.
    """
    where = example.get("key", "an example")
    if "boxes" not in example or "names" not in example:
        raise UserError(
            f"{where} has no boxes and names among the fields {sorted(example)}: expected a source "
            "of boxes, as coco:FILE.json or emoji_scenes:train"
        )
    boxes, names = np.asarray(example["boxes"], np.float32), list(example["names"])
    masks = example.get("segmentation", names)
    if len(masks) != len(names):
        raise UserError(
            f"{where} has {len(masks)} masks, expected one for each of {len(names)} boxes"
        )
    if boxes.shape != (len(names), 4) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{where} has boxes of shape {boxes.shape} and {brief(names)} as names: expected "
            "(n, 4) and n texts"
        )
    return boxes, names


def check_source(source: Source, *, masks: bool = False) -> None:
    """Checks the boxes of the first example that can be read.

    Args:
        source: source of boxes.
        masks: whether masks are required as well.

    Raises:
        UserError: see `check_boxes`; or there are no masks.
    """
    for index in range(min(len(source), MAX_IN_A_ROW)):
        try:
            example = source.annotation(index)
        except (UserError, OSError):
            continue
        check_boxes(example)
        if masks and "segmentation" not in example:
            raise UserError(
                f"{example.get('key', 'an example')} has no masks: expected a source of masks, as "
                "coco:FILE.json, semantic:DIR, referring:FILE.jsonl or emoji_scenes:train"
            )
        return


def words_of(name: str) -> str:
    """Returns a name as it stands in a prompt; data sets write underscores for spaces."""
    return name.replace("_", " ")


def verified_negatives(parts: Iterable[Part]) -> list[str]:
    """Returns the names that are verified to be absent."""
    return list(dict.fromkeys(name for part in parts for name in part.negatives))


def common_vocabulary(parts: Sequence[Part]) -> Sequence[str]:
    """Returns the names that may be asked of all parts, which may come from different sources."""
    first, *others = (part.vocabulary for part in parts)
    different = [set(other) for other in others if other is not first]
    return [name for name in first if all(name in s for s in different)] if different else first
