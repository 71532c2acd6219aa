"""Images with boxes, as augmentation moves and cuts them."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vit_jax.data.images import Pixels

MIN_VISIBLE = 0.25  # default of the fraction of a box below which a crop drops it


@dataclasses.dataclass(frozen=True)
class BoxedImage:
    """An image with boxes.

    Attributes:
        image: uint8 (H, W, 3).
        boxes: x0, y0, x1, y1, px.
        rows: number of each box among the annotations that the image came with; a transform that
            drops boxes keeps the rows of the others.
        frames: corners of each original image in this image, x0, y0, x1, y1, px. A mirrored one has
            x0 > x1. Corners may lie outside of this image.
        windows: the part of each frame that is visible, x0, y0, x1, y1, px.
        filled: height and width of the part of the model's input that is not padding, px; None
            before the model's preprocessing.
        masks: cells of each box on the grid of a batch; None before they are read.
    """

    image: Pixels
    boxes: Float32[np.ndarray, "boxes 4"]
    rows: Int64[np.ndarray, " boxes"]
    frames: Float32[np.ndarray, "images 4"]
    windows: Float32[np.ndarray, "images 4"]
    filled: tuple[int, int] | None = None
    masks: Bool[np.ndarray, "boxes rows columns"] | None = None

    @classmethod
    def of(
        cls,
        image: Pixels,
        boxes: Float32[np.ndarray, "boxes 4"],
        rows: Int64[np.ndarray, " boxes"],
    ) -> "BoxedImage":
        """Builds an image that nothing has moved yet. The arguments are those of the class."""
        height, width = image.shape[:2]
        whole = np.array([[0, 0, width, height]], np.float32)
        return cls(image, boxes, rows, whole, whole)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, px."""
        return self.image.shape[0], self.image.shape[1]

    def moved(
        self, image: Pixels, scale: tuple[float, float], offset: tuple[float, float]
    ) -> "BoxedImage":
        """Replaces the image by one in which each point lies elsewhere.

        Masks follow: they are read where `frames` and `windows` say. A transform that moves pixels
        has to call this method.

        Args:
            image: the new image.
            scale: factors of y and x; a negative one mirrors.
            offset: shift of y and x after scaling, px.
        """
        factors = np.array([scale[1], scale[0]] * 2, np.float32)
        shifts = np.array([offset[1], offset[0]] * 2, np.float32)
        return dataclasses.replace(
            self,
            image=image,
            boxes=_ordered(self.boxes * factors + shifts),
            frames=self.frames * factors + shifts,
            windows=_ordered(self._inside(self.windows) * factors + shifts),
        )

    def clipped(self, min_visible: float = MIN_VISIBLE) -> "BoxedImage":
        """Clips boxes to the image, and drops those of which too little is left.

        Args:
            min_visible: fraction of a box's area that has to be inside.
        """
        inside = self._inside(self.boxes)
        area = _areas(inside)
        keep = (area > 0) & (area >= min_visible * _areas(self.boxes))
        return dataclasses.replace(self, boxes=inside).select(keep)

    def select(self, keep: np.ndarray) -> "BoxedImage":
        """Keeps some of the boxes.

        Args:
            keep: positions of the boxes, or whether each is kept.
        """
        masks = None if self.masks is None else self.masks[keep]
        return dataclasses.replace(self, boxes=self.boxes[keep], rows=self.rows[keep], masks=masks)

    def _inside(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        height, width = self.size
        return np.clip(boxes, 0, np.array([width, height] * 2, np.float32))


def _ordered(boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
    """Boxes with the smaller corner first."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1)


def _areas(boxes: Float32[np.ndarray, "boxes 4"]) -> Float32[np.ndarray, " boxes"]:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
