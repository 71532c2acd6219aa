"""Transforms that hide a part of an image."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from vit_jax.data.images import Pixels
from vit_jax.inputs import ImageInputs


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Hide a rectangle behind one colour (DeVries and Taylor 2017).

    Attributes:
        probability: probability of changing an image.
        size: range of each side of the rectangle, as a fraction of the image's side.
    """

    keeps_boxes: ClassVar[bool] = True

    probability: float = 0.2
    size: tuple[float, float] = (0.15, 0.45)

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Hides a rectangle, or returns the image unchanged."""
        u = rng.random(8)
        if u[0] >= self.probability:
            return image
        sides = self.size[0] + (self.size[1] - self.size[0]) * u[1:3]
        (height, width) = shape = np.maximum(1, sides * image.shape[:2]).astype(int)
        top, left = (u[3:5] * (image.shape[:2] - shape + 1)).astype(int)
        image = image.copy()
        image[top : top + height, left : left + width] = u[5:] * 255
        return image


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Replace a rectangle by noise (Zhong et al. 2017), as timm's mode `pixel`.

    timm draws standard normal noise after normalisation. Here the same noise is drawn before it,
    with the model's mean and deviation, and clipped at black and white; with ImageNet's values
    that clips 3% of the noise.

    Attributes:
        probability: probability of changing an image.
        area: range of the rectangle's area, as a fraction of the image's.
        ratio: range of the rectangle's height divided by its width.
        inputs: the model's preprocessing.
    """

    keeps_boxes: ClassVar[bool] = True

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    inputs: ImageInputs = dataclasses.field(kw_only=True)

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Erases a rectangle, or returns the image unchanged."""
        if rng.random() >= self.probability:
            return image
        whole_height, whole_width = image.shape[:2]
        for _ in range(10):
            area = whole_height * whole_width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < whole_height and width < whole_width:
                break
        else:
            return image
        top = int(rng.integers(whole_height - height + 1))
        left = int(rng.integers(whole_width - width + 1))
        noise = 255 * rng.normal(self.inputs.mean, self.inputs.std, (height, width, 3))
        image = image.copy()
        image[top : top + height, left : left + width] = np.clip(np.rint(noise), 0, 255)
        return image
