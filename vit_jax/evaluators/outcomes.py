"""Which detections are right, which are false, and which objects are missed."""

from collections.abc import Sequence

import numpy as np

from vit_jax.evaluators import average_precision as ap

MATCHED, FALSE, MISSED = OUTCOMES = ("matched", "false", "missed")


def outcomes(
    annotated: Sequence[ap.Annotated],
    detected: Sequence[ap.Detected],
    num_classes: int,
    limit: int,
) -> dict[str, np.ndarray]:
    """Lists detections and missed objects, see `average_precision.match`.

    Crowds are never missed. Left out are detections in crowds, and those that an image is not
    annotated for: of classes that are neither present nor verified to be absent, and unmatched ones
    of classes whose objects are not all annotated (LVIS).

    Args:
        annotated: objects of each image.
        detected: detections in each image.
        num_classes: number of classes.
        limit: largest number of detections, those of the highest scores, and of missed objects,
            the first ones.

    Returns:
        `outcome`, `row`, `class_index`, `score`, `iou` and `box`, see `Detection.predicted`; the
        detections by descending score, then missed objects with the score and IoU 0.
    """
    matched, overlaps = ap.match(annotated, detected, num_classes)
    crowd = np.concatenate([image.crowd for image in annotated])
    known = np.concatenate(
        [_known(image, found) for image, found in zip(annotated, detected, strict=True)]
    )
    complete = np.concatenate(
        [
            ~np.isin(found.classes, image.not_exhaustive)
            for image, found in zip(annotated, detected, strict=True)
        ]
    )
    hit = matched >= 0
    counted = known & np.where(hit, ~crowd[matched] if len(crowd) else False, complete)
    found = _columns(detected)
    score = np.concatenate([image.scores for image in detected])
    order = np.flatnonzero(counted)
    order = order[np.argsort(-score[order], kind="stable")][:limit]

    objects = _columns(annotated)
    missed = ~crowd
    missed[matched[hit]] = False
    lost = np.flatnonzero(missed)[:limit]
    nothing = np.zeros(len(lost))
    outcome = np.where(hit[order], MATCHED, FALSE)
    return {
        "outcome": np.concatenate([outcome, np.full(len(lost), MISSED)]).astype(np.str_),
        **{name: np.concatenate([found[name][order], objects[name][lost]]) for name in found},
        "score": np.concatenate([score[order], nothing]).astype(np.float32),
        "iou": np.concatenate([overlaps[order], nothing]).astype(np.float32),
    }


def _known(image: ap.Annotated, found: ap.Detected) -> np.ndarray:
    """Whether an image is annotated for the class of each detection."""
    if image.absent is None:
        return np.ones(len(found.classes), bool)
    return np.isin(found.classes, [*image.classes.tolist(), *image.absent])


def _columns(images: Sequence[ap.Annotated] | Sequence[ap.Detected]) -> dict[str, np.ndarray]:
    """Image, class and box of all boxes."""
    counts = [len(image.classes) for image in images]
    return {
        "row": np.repeat(np.arange(len(images)), counts).astype(np.int32),
        "class_index": np.concatenate([image.classes for image in images]).astype(np.int32),
        "box": np.concatenate([image.boxes for image in images]).astype(np.float32),
    }
