"""Which predicted boxes are detections: thresholds and non-maximum suppression."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32

from vit_jax.models.ops.nms import nms

# Scores below this fraction of the best one are no detections of a query image (transformers).
_RELATIVE = 0.1
_SMALLEST_PADDED = 16  # boxes of the smallest compiled suppression


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Predicted boxes of an image.

    Attributes:
        boxes: x0, y0, x1, y1 in pixels of the image (n, 4).
        scores: probabilities (n,).
        labels: class of each box (n,).
    """

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]

    def __getitem__(self, rows: np.ndarray) -> "Boxes":
        return Boxes(self.boxes[rows], self.scores[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Detections:
    """Objects found in an image, from the highest score to the lowest.

    Attributes:
        key: path of the image, relative to the folder that was given; "" for an array.
        height: height of the image, px.
        width: width of the image, px.
        boxes: x0, y0, x1, y1 in pixels of the image (n, 4). They may exceed it.
        scores: score of each box (n,): a probability; with a query image relative to the best box.
        labels: position in the list of names of each box (n,).
        names: name of each box.
    """

    key: str
    height: int
    width: int
    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]
    names: list[str]


def join(parts: list[Boxes]) -> Boxes:
    """Joins the boxes of several parts of an image."""
    return Boxes(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Boxes)
        )
    )


def select(found: Boxes, threshold: float, nms_threshold: float, *, by_label: bool = True) -> Boxes:
    """Selects detections by words.

    Args:
        found: predicted boxes.
        threshold: score that a detection exceeds.
        nms_threshold: IoU above which the lower score of two boxes of a class is left out; 1 for
            none.
        by_label: whether only boxes of the same class compete.

    Returns:
        The detections, from the highest score to the lowest.
    """
    found = found[np.flatnonzero(found.scores > threshold)]
    found = found[np.argsort(-found.scores, kind="stable")]
    labels = found.labels if by_label else np.zeros_like(found.labels)
    return found[not_suppressed(dataclasses.replace(found, labels=labels), nms_threshold)]


def select_relative(found: Boxes, threshold: float, nms_threshold: float) -> Boxes:
    """Selects detections by a query image, as transformers.

    Args:
        found: predicted boxes.
        threshold: score that a detection reaches.
        nms_threshold: IoU above which the lower score of two boxes is left out; 1 for none.

    Returns:
        The detections, from the highest score to the lowest. Scores are relative: 1 for the best
        box, and 0, which is no detection, for a tenth of its probability.
    """
    if not len(found.scores):
        return found
    best = found.scores.max() if found.scores.max() >= threshold else np.float32(0)
    best = best + np.float32(1e-6)
    relative = (found.scores - best * np.float32(_RELATIVE)) / (best * np.float32(1 - _RELATIVE))
    relative = np.where(found.scores >= threshold, relative, 0).clip(0, 1)
    return select(dataclasses.replace(found, scores=relative), 0.0, nms_threshold)


_nms = jax.jit(nms, static_argnames="iou_threshold")


def not_suppressed(found: Boxes, threshold: float) -> Bool[np.ndarray, " n"]:
    """Returns whether no box of the same class and of a higher score overlaps each box.

    The number of boxes is padded, so that few sizes are compiled.

    Args:
        found: boxes.
        threshold: IoU above which the lower score of two boxes is left out; 1 for none.
    """
    count = len(found.scores)
    if threshold >= 1 or count < 2:
        return np.ones(count, bool)
    padded = max(_SMALLEST_PADDED, 1 << (count - 1).bit_length())
    pad = padded - count
    keep = _nms(
        np.pad(found.boxes, ((0, pad), (0, 0))),
        np.pad(found.scores, (0, pad), constant_values=-np.inf),
        iou_threshold=threshold,
        labels=np.pad(found.labels, (0, pad), constant_values=-1),
    )
    return np.asarray(keep)[:count]
