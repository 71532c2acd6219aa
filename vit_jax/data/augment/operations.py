"""Operations of AutoAugment and RandAugment, with timm's definition of their magnitude.

A magnitude lies in [0, 10], or above where a policy allows it. Signed operations choose either sign
with equal probability. They use Pillow, as AutoAugment's own code and timm's do, so that their
results agree.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (124, 116, 104)
"""Colour of pixels from outside the image: ImageNet's mean, as in timm."""

Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]

_ENHANCERS: dict[str, Callable[[Image.Image], Any]] = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


def enhance(image: Image.Image, name: str, factor: float) -> Image.Image:
    """Changes a property of an image.

    Args:
        image: RGB image.
        name: "brightness", "color", "contrast" or "sharpness".
        factor: 0 removes the property, 1 keeps it, 2 doubles it.
    """
    return _ENHANCERS[name](image).enhance(factor)


def rotate_hue(image: Image.Image, turn: float) -> Image.Image:
    """Rotates the hue by a fraction of the full circle, in steps of 1/256."""
    hue, saturation, value = image.convert("HSV").split()
    levels = np.asarray(hue) + np.uint8(round(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(levels), saturation, value)).convert("RGB")


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _move(image: Image.Image, matrix: tuple[float, ...], rng: np.random.Generator) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=_resample(rng), fillcolor=FILL
    )


def _resample(rng: np.random.Generator) -> Image.Resampling:
    return Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC


def _rotate(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    angle = _signed(3 * magnitude, rng)
    return image.rotate(angle, resample=_resample(rng), fillcolor=FILL)


def _shear_x(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _move(image, (1, _signed(0.03 * magnitude, rng), 0, 0, 1, 0), rng)


def _shear_y(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _move(image, (1, 0, 0, _signed(0.03 * magnitude, rng), 1, 0), rng)


def _translate_x(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _move(image, (1, 0, _signed(0.045 * magnitude, rng) * image.width, 0, 1, 0), rng)


def _translate_y(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _move(image, (1, 0, 0, 0, 1, _signed(0.045 * magnitude, rng) * image.height), rng)


def _keep_bits(image: Image.Image, bits: int) -> Image.Image:
    """Sets all except the highest bits to 0; unlike Pillow's posterize, it can keep no bits."""
    mask = 0xFF & (0xFF << (8 - bits))
    return image.point([level & mask for level in range(256)] * 3)


def _posterize(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _keep_bits(image, max(0, min(8, int(0.4 * magnitude))))


def _posterize_increasing(
    image: Image.Image, magnitude: float, rng: np.random.Generator
) -> Image.Image:
    return _keep_bits(image, max(0, 4 - int(0.4 * magnitude)))


def _posterize_original(
    image: Image.Image, magnitude: float, rng: np.random.Generator
) -> Image.Image:
    return _keep_bits(image, min(8, 4 + int(0.4 * magnitude)))


def _solarize(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(image, min(256, int(25.6 * magnitude)))


def _solarize_increasing(
    image: Image.Image, magnitude: float, rng: np.random.Generator
) -> Image.Image:
    return ImageOps.solarize(image, 256 - min(256, int(25.6 * magnitude)))


def _solarize_add(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    add = min(128, int(11 * magnitude))
    levels = [min(255, level + add) if level < 128 else level for level in range(256)]
    return image.point(levels * 3)


def _enhancing(name: str) -> Operation:
    """Factors from 0.1 to 1.9; magnitude 5 changes nothing."""
    return lambda image, magnitude, rng: enhance(image, name, 0.18 * magnitude + 0.1)


def _enhancing_increasing(name: str) -> Operation:
    """Factors that move away from 1, in either direction, with the magnitude."""
    return lambda image, magnitude, rng: enhance(
        image, name, max(0.1, 1 + _signed(0.09 * magnitude, rng))
    )


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda image, magnitude, rng: ImageOps.autocontrast(image),
    "equalize": lambda image, magnitude, rng: ImageOps.equalize(image),
    "invert": lambda image, magnitude, rng: ImageOps.invert(image),
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "posterize": _posterize,
    "posterize_increasing": _posterize_increasing,
    "posterize_original": _posterize_original,
    "solarize": _solarize,
    "solarize_increasing": _solarize_increasing,
    "solarize_add": _solarize_add,
    **{name: _enhancing(name) for name in _ENHANCERS},
    **{f"{name}_increasing": _enhancing_increasing(name) for name in _ENHANCERS},
}
"""Operations by name: (image, magnitude, generator) -> image."""
