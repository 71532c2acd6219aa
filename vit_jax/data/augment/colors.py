"""Transforms of colours."""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from vit_jax.data.augment import operations
from vit_jax.data.images import Picture
from vit_jax.inputs import composite

_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class Background:
    """Lays an image with alpha on one colour; an image without alpha stays as it is.

    Attributes:
        white: probability of white; else the colour is uniform.
    """

    white: float = 0.3

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
        white, *color = rng.random(4)
        if image.shape[-1] == 3 or white < self.white:
            return composite(image)
        return composite(image, (np.asarray(color) * 255).astype(np.uint16))


@dataclasses.dataclass(frozen=True)
class ColorShift:
    """Hue, saturation, brightness and contrast in one linear map of the colours.

    Attributes:
        hue: largest rotation about the grey axis either way, radians.
        saturation: largest relative change either way.
        brightness: largest shift either way, as a fraction of the range.
        contrast: largest relative change about mid-grey either way.
        grey: probability of no colour at all.
        shade: largest relative brightness of one edge of the image against its centre, a slope.
    """

    hue: float = 0.2
    saturation: float = 0.5
    brightness: float = 0.12
    contrast: float = 0.2
    grey: float = 0.05
    shade: float = 0.0

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
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
    """Brightness, contrast, saturation and hue, one after the other in random order.

    As torchvision's ColorJitter: factors are uniform in [1 - x, 1 + x], not below 0.

    Attributes:
        brightness: largest relative change.
        contrast: largest relative change, about the mean grey level.
        saturation: largest relative change.
        hue: largest turn either way, of a full one; at most 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
        picture = Image.fromarray(image)
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
                picture = operations.turn_hue(picture, change)
            else:
                picture = operations.enhance(picture, name, max(0.0, 1 + change))
        return np.asarray(picture)


@dataclasses.dataclass(frozen=True)
class ThreeAugment:
    """One of grey, solarised and blurred, each as likely (DeiT III; Touvron et al. 2022, sec. 3.2).

    Levels from 128 are inverted by solarisation; the blur's radius is uniform in [0.1, 2] px.
    """

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
        picture = Image.fromarray(image)
        choice = int(rng.integers(3))
        if choice == 0:
            return np.asarray(picture.convert("L").convert("RGB"))
        if choice == 1:
            return np.asarray(ImageOps.solarize(picture, threshold=128))
        return np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0))))


def _rotation_about_grey(angle: float) -> np.ndarray:
    """Rotation of RGB about (1, 1, 1), Rodrigues' formula; for row vectors."""
    cos, sin = math.cos(angle), math.sin(angle)
    cross = np.asarray([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / math.sqrt(3)
    return (cos * np.eye(3) + (1 - cos) / 3 + sin * cross).astype(np.float32)


def _saturate(factor: float) -> np.ndarray:
    """Blend of a colour with its luma; for row vectors."""
    grey = np.repeat(_LUMA[:, None], 3, axis=1)
    return (factor * np.eye(3) + (1 - factor) * grey).astype(np.float32)
