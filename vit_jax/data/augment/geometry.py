"""Transforms that move, crop or resize an image."""

import dataclasses
import math
from typing import ClassVar

import cv2
import numpy as np

from vit_jax.data.images import EncodedImage, Picture
from vit_jax.errors import UserError
from vit_jax.inputs import composite, preprocess

# Reader threads and processes are the parallelism; OpenCV's own threads only contend with them.
cv2.setNumThreads(0)


@dataclasses.dataclass(frozen=True)
class Resize:
    """To the model's size as in evaluation, without randomness.

    Attributes:
        mode: see `preprocess`.
    """

    mode: str = "crop"
    output_size: int = 0  # px, set by the parser

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
        return preprocess(image, size=self.output_size, resize=self.mode)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, stretched to the model's size (Inception; Szegedy et al. 2014).

    Area and aspect ratio are drawn as torchvision and timm do. As the first transform it reads a
    JPEG at the smallest scale of 1, 1/2, 1/4 and 1/8 that leaves the crop no smaller than the
    result. What is left to shrink, less than half, is bilinear; transparency is laid on white.

    Attributes:
        scale: range of the part's fraction of the area.
        ratio: range of its width over its height.
    """

    reads_files: ClassVar[bool] = True

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    output_size: int = 0  # px, set by the parser

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise UserError(f"random_resized_crop: {name}={(low, high)} is not a range above 0")
        if self.scale[1] > 1:
            raise UserError(f"random_resized_crop: scale={self.scale} is more than the picture")

    def __call__(self, image: Picture | EncodedImage, rng: np.random.Generator) -> Picture:
        shape = image.shape if isinstance(image, EncodedImage) else image.shape[:2]
        top, left, height, width = self.box(shape[0], shape[1], rng)
        bottom, right = top + height, left + width
        factor = 1
        if isinstance(image, EncodedImage):
            # As many rows more as one may be off when the height is no multiple of the factor.
            scale = self.output_size / min(height, width)
            image, factor = image.decode_reduced(scale, bottom + 8)
        down, across = (math.ceil(whole / factor) / whole for whole in shape)
        part = image[
            round(top * down) : max(round(bottom * down), round(top * down) + 1),
            round(left * across) : max(round(right * across), round(left * across) + 1),
        ]
        return resize(composite(part), self.output_size)

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of the part, px; the centre where ten draws do not fit."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True)
class Flip:
    """Left and right exchanged.

    Attributes:
        probability: of doing it.
    """

    probability: float = 0.5

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
        return cv2.flip(image, 1) if rng.random() < self.probability else image


@dataclasses.dataclass(frozen=True)
class Affine:
    """Random rotation, scale, aspect ratio, shear and shift; the border continues outwards.

    Each output pixel is the mean of four nearest neighbours on a grid of twice the resolution, a
    tenth of the cost of bicubic.

    Attributes:
        rotate: largest angle either way, degrees.
        scale: range of the size of the image's content.
        aspect: largest log of the stretch of the axes either way.
        shear: largest shear either way.
        shift: largest shift either way, as a fraction of the side.
    """

    rotate: float = 10.0
    scale: tuple[float, float] = (0.8, 1.1)
    aspect: float = 0.1
    shear: float = 0.1
    shift: float = 0.06
    output_size: int = 0  # px, set by the parser

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
        height, width, channels = image.shape
        u = rng.random(6, dtype=np.float32)
        angle, aspect, shear, shift_y, shift_x = (2 * u[1:] - 1) * (
            math.radians(self.rotate),
            self.aspect,
            self.shear,
            self.shift * height,
            self.shift * width,
        )
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * u[0]
        # From the output grid, centred, to the image.
        step_y = height / (2 * self.output_size) / scale * math.exp(aspect)
        step_x = width / (2 * self.output_size) / scale * math.exp(-aspect)
        cos, sin = math.cos(angle), math.sin(angle)
        grid = np.arange(2 * self.output_size, dtype=np.float32) + 0.5 - self.output_size
        down, across = grid[:, None], grid[None, :]
        y = step_y * (cos * down + (sin + shear) * across) + (height / 2 + shift_y)
        x = step_x * (cos * across - sin * down) + (width / 2 + shift_x)
        index = np.clip(y, 0, height - 1).astype(np.int32) * width
        index += np.clip(x, 0, width - 1).astype(np.int32)
        pixels = image.reshape(-1, channels).take(index, axis=0).astype(np.uint16)
        total = pixels[0::2, 0::2] + pixels[1::2, 0::2] + pixels[0::2, 1::2] + pixels[1::2, 1::2]
        return ((total + 2) >> 2).astype(np.uint8)


def resize(image: Picture, size: int) -> Picture:
    """To (size, size): bicubic to enlarge, bilinear to shrink to a half, area averages beyond."""
    shrink = min(image.shape[:2]) / size
    smaller = cv2.INTER_LINEAR if shrink < 2 else cv2.INTER_AREA
    method = cv2.INTER_CUBIC if shrink < 1 else smaller
    return cv2.resize(image, (size, size), interpolation=method)
