"""Images with boxes, as augmentation moves and cuts them."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int64

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
        filled: height and width of the part of the model's input that is not padding, px; None
            before the model's preprocessing.
    """

    image: Pixels
    boxes: Float32[np.ndarray, "boxes 4"]
    rows: Int64[np.ndarray, " boxes"]
    filled: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, px."""
        return self.image.shape[0], self.image.shape[1]

    def moved(
        self, image: Pixels, scale: tuple[float, float], offset: tuple[float, float]
    ) -> "BoxedImage":
        """Replaces the image by one in which each point lies elsewhere.

        Args:
            image: the new image.
            scale: factors of y and x.
            offset: shift of y and x after scaling, px.
        """
        factors = np.array([scale[1], scale[0]] * 2, np.float32)
        shifts = np.array([offset[1], offset[0]] * 2, np.float32)
        return dataclasses.replace(self, image=image, boxes=self.boxes * factors + shifts)

    def clipped(self, min_visible: float = MIN_VISIBLE) -> "BoxedImage":
        """Clips boxes to the image, and drops those of which too little is left.

        Args:
            min_visible: fraction of a box's area that has to be inside.
        """
        height, width = self.size
        inside = np.clip(self.boxes, 0, np.array([width, height] * 2, np.float32))
        area = _areas(inside)
        keep = (area > 0) & (area >= min_visible * _areas(self.boxes))
        return dataclasses.replace(self, boxes=inside[keep], rows=self.rows[keep])


def _areas(boxes: Float32[np.ndarray, "boxes 4"]) -> Float32[np.ndarray, " boxes"]:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
