"""Transforms that hide a part of an image."""

import dataclasses
import math

import numpy as np

from vit_jax.data.images import Picture


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Hides a rectangle behind one colour (DeVries and Taylor 2017).

    Attributes:
        probability: of doing it.
        size: range of each side, as a fraction of the image's.
    """

    probability: float = 0.2
    size: tuple[float, float] = (0.15, 0.45)

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
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
    """Puts noise in place of a rectangle (Zhong et al. 2017), as timm's mode `pixel`.

    timm draws normal noise after normalisation; here it is drawn as it is before it, and cut off
    at black and white, three hundredths of it with the default levels.

    Attributes:
        probability: of doing it.
        area: range of the rectangle's fraction of the image.
        ratio: range of its height over its width.
        mean: of the noise in each channel, a fraction of white: the model's normalisation.
        std: likewise.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
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
        noise = 255 * rng.normal(self.mean, self.std, (height, width, 3))
        image = image.copy()
        image[top : top + height, left : left + width] = np.clip(np.rint(noise), 0, 255)
        return image
