"""Masks of an image."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int32

Mask = Bool[np.ndarray, "height width"]


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Masks of an image, in its pixels.

    Attributes:
        key: path of the image, relative to the folder that was given; "" for an array.
        height: height of the image H, px.
        width: width of the image W, px.
        masks: pixels of each object (n, H, W).
        scores: score of each mask (n,): the predicted IoU for prompts; for words the score of the
            box or of the mask.
        labels: position of the prompt or of the name of each mask (n,).
        names: name of each mask; "" for prompts.
        logits: logits as the model predicts them (n, h, w), which serve as prompts of a later call;
            (n, 0, 0) where masks are joined from parts of an image.
    """

    key: str
    height: int
    width: int
    masks: Bool[np.ndarray, "n height width"]
    scores: Float32[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]
    names: list[str]
    logits: Float32[np.ndarray, "n rows columns"]

    @property
    def boxes(self) -> Float32[np.ndarray, "n 4"]:
        """The smallest box around each mask, x0, y0, x1, y1 in pixels; zeros for an empty mask."""
        found = [box_around(mask) for mask in self.masks]
        return np.array(found, np.float32).reshape(-1, 4)


def box_around(mask: Mask) -> tuple[int, int, int, int]:
    """Returns x0, y0, x1, y1 of the smallest box around a mask; zeros for an empty one.

    Args:
        mask: pixels (H, W). The box ends behind the last pixel.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
