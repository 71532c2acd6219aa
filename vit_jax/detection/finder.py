"""What a search needs of a detector, whatever kind it is."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from vit_jax.detection.selection import Boxes


class Found(NamedTuple):
    """Boxes of a batch of inputs.

    Attributes:
        boxes: x0, y0, x1, y1 relative to the input (B, Q, 4).
        scores: score of each box (B, Q).
        labels: position of each box among the classes (B, Q).
    """

    boxes: Float32[np.ndarray, "batch boxes 4"]
    scores: Float32[np.ndarray, "batch boxes"]
    labels: Int32[np.ndarray, "batch boxes"]


# (packed inputs (B, N), uint8; height and width of each image, px (B, 2)) -> boxes
Find = Callable[[UInt8[np.ndarray, "batch packed"], Int[np.ndarray, "batch 2"]], Found]


@dataclasses.dataclass(frozen=True)
class Finder:
    """A detector and what it looks for.

    Attributes:
        find: computes the boxes of a batch.
        classes: names to which labels refer. `find` may append to it.
        threshold: default of the score that a detection exceeds.
        nms_threshold: default of the IoU above which the lower score of two boxes is left out.
        select: chooses detections by both thresholds, see `selection`.
    """

    find: Find
    classes: list[str]
    threshold: float
    nms_threshold: float
    select: Callable[[Boxes, float, float], Boxes]
