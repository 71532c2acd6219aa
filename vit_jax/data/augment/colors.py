"""Transforms that change colours."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageFilter, ImageOps

from vit_jax.data.augment import operations
from vit_jax.data.images import Pixels
from vit_jax.inputs import composite

_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Background:
    """Composite an image with alpha on one colour; other images stay unchanged.

    Attributes:
        white: probability of white; otherwise the colour is uniform.
    """

    keeps_boxes: ClassVar[bool] = True
    removes_alpha: ClassVar[bool] = True

    white: float = 0.3

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Returns an image without alpha."""
        white, *color = rng.random(4)
        if image.shape[-1] == 3 or white < self.white:
            return composite(image)
        return composite(image, (np.asarray(color) * 255).astype(np.uint16))


@dataclasses.dataclass(frozen=True)
class ColorShift:
    """Change hue, saturation, brightness and contrast with one linear map of the colours.

    Attributes:
        hue: largest rotation about the grey axis in either direction, radians.
        saturation: largest relative change in either direction.
        brightness: largest shift in either direction, as a fraction of the range.
        contrast: largest relative change about mid-grey in either direction.
        grey: probability of removing all colour.
        shade: largest relative brightness of one edge of the image against its centre, as a slope.
    """

    keeps_boxes: ClassVar[bool] = True

    hue: float = 0.2
    saturation: float = 0.5
    brightness: float = 0.12
    contrast: float = 0.2
    grey: float = 0.05
    shade: float = 0.0

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Changes the colours of an image (H, W, 3)."""
        u = rng.random(7, dtype=np.float32)
        hue, saturation, brightness, contrast, down, across = (2 * u[1:] - 1) * (
            self.hue,
            self.saturation,
            self.brightness,
            self.contrast,
            self.shade,
            self.shade,
        )
        amount = -1.0 if u[0] < self.grey else saturation
        matrix = _rotation_about_grey(hue) @ _saturate(1 + amount) * np.float32(1 + contrast)
        offset = np.float32(255 * brightness - 127.5 * contrast)
        pixels = image.reshape(-1, 3).astype(np.float32) @ matrix + offset
        pixels = pixels.reshape(image.shape)
        if self.shade:
            rows = np.linspace(-down, down, image.shape[0], dtype=np.float32)
            columns = np.linspace(-across, across, image.shape[1], dtype=np.float32)
            pixels *= (1 + rows[:, None] + columns[None])[..., None]
        return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue in random order.

    As torchvision's `ColorJitter`: factors are uniform in [1 - x, 1 + x] and at least 0.

    Attributes:
        brightness: largest relative change.
        contrast: largest relative change, about the mean grey level.
        saturation: largest relative change.
        hue: largest rotation in either direction, as a fraction of the full circle; at most 0.5.
        probability: probability of changing an image.
    """

    keeps_boxes: ClassVar[bool] = True

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Changes the colours of an image (H, W, 3)."""
        if self.probability < 1 and rng.random() >= self.probability:
            return image
        pil = Image.fromarray(image)
        for number in rng.permutation(4):
            name, strength = (
                ("brightness", self.brightness),
                ("contrast", self.contrast),
                ("color", self.saturation),
                ("hue", self.hue),
            )[number]
            if not strength:
                continue
            change = rng.uniform(-strength, strength)
            if name == "hue":
                pil = operations.rotate_hue(pil, change)
            else:
                pil = operations.enhance(pil, name, max(0.0, 1 + change))
        return np.asarray(pil)


@dataclasses.dataclass(frozen=True)
class Grayscale:
    """Remove all colour.

    Attributes:
        probability: probability of changing an image.
    """

    keeps_boxes: ClassVar[bool] = True

    probability: float = 0.2

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Returns the luma of an image (H, W, 3) in all channels, or the image unchanged."""
        return _grey(Image.fromarray(image)) if rng.random() < self.probability else image


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """Blur.

    Attributes:
        probability: probability of changing an image.
        radius: range of the standard deviation, px.
    """

    keeps_boxes: ClassVar[bool] = True

    probability: float = 0.5
    radius: tuple[float, float] = (0.1, 2.0)

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Blurs an image (H, W, 3), or returns it unchanged."""
        if rng.random() >= self.probability:
            return image
        blur = ImageFilter.GaussianBlur(rng.uniform(*self.radius))
        return np.asarray(Image.fromarray(image).filter(blur))


@dataclasses.dataclass(frozen=True)
class Solarize:
    """Invert bright levels.

    Attributes:
        probability: probability of changing an image.
        threshold: smallest level that is inverted.
    """

    keeps_boxes: ClassVar[bool] = True

    probability: float = 0.2
    threshold: int = 128

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Inverts the bright levels of an image (H, W, 3), or returns it unchanged."""
        if rng.random() >= self.probability:
            return image
        return np.where(image < self.threshold, image, 255 - image)


@dataclasses.dataclass(frozen=True)
class ThreeAugment:
    """Grey, solarise or blur, with equal probability (DeiT III; Touvron et al. 2022, sec. 3.2).

    Solarisation inverts levels from 128. The radius of the blur is uniform in [0.1, 2] px.
    """

    keeps_boxes: ClassVar[bool] = True

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Applies one of the three operations to an image (H, W, 3)."""
        pil = Image.fromarray(image)
        choice = int(rng.integers(3))
        if choice == 0:
            return _grey(pil)
        if choice == 1:
            return np.asarray(ImageOps.solarize(pil, threshold=128))
        return np.asarray(pil.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0))))


def _grey(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("L").convert("RGB"))


def _rotation_about_grey(angle: float) -> Float32[np.ndarray, "3 3"]:
    """Rotation of RGB row vectors about (1, 1, 1), by Rodrigues' formula."""
    cos, sin = math.cos(angle), math.sin(angle)
    cross = np.asarray([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / math.sqrt(3)
    return (cos * np.eye(3) + (1 - cos) / 3 + sin * cross).astype(np.float32)


def _saturate(factor: float) -> Float32[np.ndarray, "3 3"]:
    """Blend of RGB row vectors with their luma."""
    grey = np.repeat(_LUMA[:, None], 3, axis=1)
    return (factor * np.eye(3) + (1 - factor) * grey).astype(np.float32)
