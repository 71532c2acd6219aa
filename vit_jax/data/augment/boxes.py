"""Transforms of images with boxes."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from vit_jax.data.augment.boxed import MIN_VISIBLE, BoxedImage
from vit_jax.data.augment.geometry import RandomResizedCrop
from vit_jax.data.images import Pixels
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random part of the image, at its own scale.

    Attributes:
        scale: range of the part's area, as a fraction of the image's.
        ratio: range of the part's width divided by its height.
        min_visible: fraction of a box below which it is dropped.
        inputs: the model's preprocessing.
    """

    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (0.5, 2.0)
    min_visible: float = MIN_VISIBLE
    inputs: ImageInputs = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        _check_fraction(self.min_visible, "random_crop")
        RandomResizedCrop(self.scale, self.ratio, inputs=self.inputs)  # checks the ranges

    def with_boxes(self, image: BoxedImage, rng: np.random.Generator) -> BoxedImage:
        """Crops an image; boxes are clipped, and those with too little left are dropped."""
        sampler = RandomResizedCrop(self.scale, self.ratio, inputs=self.inputs)
        top, left, height, width = sampler.box(*image.size, rng)
        part = image.image[top : top + height, left : left + width]
        return image.moved(part, (1, 1), (-top, -left)).clipped(self.min_visible)


@dataclasses.dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste").

    The image is scaled so that it fits into the model's input, times a random factor, and placed at
    random on a canvas of that size: a larger one is cropped, a smaller one is surrounded by black.

    Attributes:
        scale: range of the factor, uniform.
        min_visible: fraction of a box below which it is dropped.
        inputs: the model's preprocessing.
    """

    scale: tuple[float, float] = (0.1, 2.0)
    min_visible: float = MIN_VISIBLE
    inputs: ImageInputs = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale_jitter: scale={self.scale}, expected a range above 0")
        _check_fraction(self.min_visible, "scale_jitter")

    def with_boxes(self, image: BoxedImage, rng: np.random.Generator) -> BoxedImage:
        """Scales an image and places it on a canvas."""
        canvas = self.inputs.size
        factor = rng.uniform(*self.scale) * min(np.divide(canvas, image.size))
        size = [max(1, round(side * factor)) for side in image.size]
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        scaled = cv2.resize(image.image, size[::-1], interpolation=method)
        pixels = np.zeros((*canvas, 3), np.uint8)
        # Offset of the image on the canvas; below 0 where it is cropped.
        offset = [
            int(rng.integers(min(0, room), max(0, room) + 1))
            for room in (side - own for side, own in zip(canvas, size, strict=True))
        ]
        (top, left), (bottom, right) = (
            [max(0, start) for start in offset],
            [min(s, o + n) for s, o, n in zip(canvas, offset, size, strict=True)],
        )
        y, x = offset
        pixels[top:bottom, left:right] = scaled[top - y : bottom - y, left - x : right - x]
        scale = (size[0] / image.size[0], size[1] / image.size[1])
        return image.moved(pixels, scale, (y, x)).clipped(self.min_visible)


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """A grid of images, each scaled to its cell (Minderer et al. 2022, OWL-ViT).

    The other images are drawn from the whole source with the generator of the example, so that a
    mosaic depends on the seed and the position only. Transforms before it change each image, those
    after it the grid.

    Attributes:
        probabilities: probabilities of grids of 1, 2, 3, ... images per side.
        inputs: the model's preprocessing, which also scales the cells.
    """

    probabilities: tuple[float, ...] = (0.4, 0.3, 0.3)
    inputs: ImageInputs = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        values = self.probabilities
        if not values or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
            raise UserError(
                f"mosaic: probabilities={values}, expected numbers from 0 to 1 whose sum is 1"
            )
        if self.inputs.resize == "fit":
            raise UserError(
                "mosaic scales images to its cells: expected inputs.resize 'squash' or 'corner'; "
                "found 'fit', whose images have a scale of their own"
            )
        if min(self.inputs.size) < len(values):
            raise UserError(f"mosaic: grids of {len(values)} do not fit into {self.inputs.size} px")

    def count(self, rng: np.random.Generator) -> int:
        """Draws the number of images of a mosaic."""
        return (1 + int(rng.choice(len(self.probabilities), p=self.probabilities))) ** 2

    def combine(self, images: Sequence[BoxedImage], rng: np.random.Generator) -> BoxedImage:
        """Puts as many images as `count` into a grid, row by row; one image is not changed.

        Args:
            images: images whose rows count through the annotations of all of them.
            rng: source of randomness; not used.
        """
        side = round(len(images) ** 0.5)
        if side == 1:
            return images[0]
        height, width = self.inputs.size
        down = [round(i * height / side) for i in range(side + 1)]
        across = [round(i * width / side) for i in range(side + 1)]
        pixels = np.zeros((height, width, 3), np.uint8)
        cells = []
        for number, image in enumerate(images):
            row, column = divmod(number, side)
            top, left = down[row], across[column]
            size = down[row + 1] - top, across[column + 1] - left
            extent = self.inputs.extent(*image.size)
            scale = (size[0] / extent[0], size[1] / extent[1])
            preprocess = dataclasses.replace(self.inputs, size=size)
            pixels[top : top + size[0], left : left + size[1]] = preprocess(
                _reduce(image.image, 2 * max(scale))
            )
            cells.append(image.moved(pixels, scale, (top, left)))
        return BoxedImage(
            pixels,
            boxes=np.concatenate([cell.boxes for cell in cells]),
            rows=np.concatenate([cell.rows for cell in cells]),
            frames=np.concatenate([cell.frames for cell in cells]),
            windows=np.concatenate([cell.windows for cell in cells]),
        )


def _reduce(image: Pixels, scale: float) -> Pixels:
    """Scales an image down by averages, which is much faster than the filters of preprocessing."""
    if scale >= 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[:2]]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def _check_fraction(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name}: min_visible={value}, expected a fraction from 0 to 1")
