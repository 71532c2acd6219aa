"""Transforms that move, crop or resize an image."""

import dataclasses
import math
from typing import ClassVar

import cv2
import numpy as np
from jaxtyping import UInt8

from vit_jax.data.augment.boxed import BoxedImage
from vit_jax.data.images import EncodedImage, Pixels
from vit_jax.errors import UserError, check_name
from vit_jax.inputs import NAFLEX, RESIZES, ImageInputs, composite

# Reader threads and processes already run in parallel; OpenCV's threads would compete with them.
cv2.setNumThreads(0)


@dataclasses.dataclass(frozen=True)
class Resize:
    """The model's preprocessing, without randomness.

    Attributes:
        mode: "crop", "squash" or "pad", see `ImageInputs.resize`; by default the model's.
        inputs: the model's preprocessing.
    """

    mode: str | None = None
    inputs: ImageInputs = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        if self.mode is not None:
            check_name(self.mode, RESIZES, "mode of resize,")
        if self.mode == NAFLEX and not self.inputs.is_naflex:
            raise UserError(f"resize({NAFLEX!r}): set config.model.inputs.resize instead")

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Resizes an image to the model's input size."""
        mode = self.mode or self.inputs.resize
        return dataclasses.replace(self.inputs, resize=mode)(image)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, scaled to the model's input size (Szegedy et al. 2014).

    Area and aspect ratio are drawn as in torchvision and timm. As the first transform, it decodes
    a JPEG at the smallest of the scales 1, 1/2, 1/4 and 1/8 whose crop is no smaller than the
    result. The remaining reduction, below a factor of two, is bilinear. Enlarging uses the model's
    interpolation. Alpha is composited on white. With "naflex" the part keeps its aspect ratio.

    Attributes:
        scale: range of the part's area, as a fraction of the image's.
        ratio: range of the part's width divided by its height.
        inputs: the model's preprocessing.
    """

    reads_encoded: ClassVar[bool] = True

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    inputs: ImageInputs = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise UserError(
                    f"random_resized_crop: {name}={(low, high)}, expected a range above 0"
                )
        if self.scale[1] > 1:
            raise UserError(
                f"random_resized_crop: scale={self.scale}, expected at most 1, the whole image"
            )

    def __call__(self, image: Pixels | EncodedImage, rng: np.random.Generator) -> Pixels:
        """Crops and resizes an image."""
        shape = image.shape if isinstance(image, EncodedImage) else image.shape[:2]
        top, left, height, width = self.box(shape[0], shape[1], rng)
        bottom, right = top + height, left + width
        factor = 1
        if isinstance(image, EncodedImage):
            target = self.inputs.size_of(height, width)
            scale = max(target[0] / height, target[1] / width)
            # Up to one more row of the reduced image is needed where the factor does not divide
            # the height.
            image, factor = image.decode_reduced(scale, bottom + 8)
        down, across = (math.ceil(whole / factor) / whole for whole in shape)
        part = image[
            round(top * down) : max(round(bottom * down), round(top * down) + 1),
            round(left * across) : max(round(right * across), round(left * across) + 1),
        ]
        size = self.inputs.size_of(height, width)
        return _resize(composite(part), size, self.inputs.interpolation)

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws the part of an image.

        Args:
            height: height of the image, px.
            width: width of the image, px.
            rng: source of randomness.

        Returns:
            Top, left, height and width of the part, px. After ten draws that do not fit into the
            image, the largest centred part with an allowed ratio.
        """
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
    """Mirror left and right.

    Attributes:
        probability: probability of mirroring an image.
    """

    keeps_alpha: ClassVar[bool] = True

    probability: float = 0.5

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Mirrors an image, or returns it unchanged."""
        return cv2.flip(image, 1) if rng.random() < self.probability else image

    def with_boxes(self, image: BoxedImage, rng: np.random.Generator) -> BoxedImage:
        """Mirrors an image and its boxes, or returns it unchanged."""
        if rng.random() >= self.probability:
            return image
        return image.moved(cv2.flip(image.image, 1), (1, -1), (0, image.size[1]))


@dataclasses.dataclass(frozen=True)
class Affine:
    """Random rotation, scale, aspect ratio, shear and shift, to the model's input size.

    Outside the image its border pixels repeat. Each output pixel is the mean of four nearest
    neighbours on a grid of twice the resolution, at a tenth of the cost of bicubic interpolation.

    Attributes:
        rotate: largest angle in either direction, degrees.
        scale: range of the scale factor of the content.
        aspect: largest log of the relative stretch of the axes, in either direction.
        shear: largest shear in either direction.
        shift: largest shift in either direction, as a fraction of the side.
        inputs: the model's preprocessing.
    """

    keeps_alpha: ClassVar[bool] = True

    rotate: float = 10.0
    scale: tuple[float, float] = (0.8, 1.1)
    aspect: float = 0.1
    shear: float = 0.1
    shift: float = 0.06
    inputs: ImageInputs = dataclasses.field(kw_only=True)

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Warps an image."""
        height, width, channels = image.shape
        rows, columns = self.inputs.size_of(height, width)
        u = rng.random(6, dtype=np.float32)
        angle, aspect, shear, shift_y, shift_x = (2 * u[1:] - 1) * (
            math.radians(self.rotate),
            self.aspect,
            self.shear,
            self.shift * height,
            self.shift * width,
        )
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * u[0]
        # From the centred output grid to the image.
        step_y = height / (2 * rows) / scale * math.exp(aspect)
        step_x = width / (2 * columns) / scale * math.exp(-aspect)
        cos, sin = math.cos(angle), math.sin(angle)
        down = np.arange(2 * rows, dtype=np.float32)[:, None] + 0.5 - rows
        across = np.arange(2 * columns, dtype=np.float32)[None, :] + 0.5 - columns
        y = step_y * (cos * down + (sin + shear) * across) + (height / 2 + shift_y)
        x = step_x * (cos * across - sin * down) + (width / 2 + shift_x)
        index = np.clip(y, 0, height - 1).astype(np.int32) * width
        index += np.clip(x, 0, width - 1).astype(np.int32)
        pixels = image.reshape(-1, channels).take(index, axis=0).astype(np.uint16)
        total = pixels[0::2, 0::2] + pixels[1::2, 0::2] + pixels[0::2, 1::2] + pixels[1::2, 1::2]
        return ((total + 2) >> 2).astype(np.uint8)


def _resize(
    image: Pixels, size: tuple[int, int], interpolation: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Scales an image: area averages below 1/2, bilinear below 1, else the model's method."""
    height, width = size
    shrink = min(image.shape[0] / height, image.shape[1] / width)
    enlarge = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}[interpolation]
    smaller = cv2.INTER_LINEAR if shrink < 2 else cv2.INTER_AREA
    method = enlarge if shrink < 1 else smaller
    return cv2.resize(image, (width, height), interpolation=method)
