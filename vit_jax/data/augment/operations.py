"""The named operations of AutoAugment and RandAugment, with timm's meaning of their magnitude.

A magnitude is from 0 to 10, and more where a policy allows it. Operations whose magnitude has a
sign take either with equal chance. Pillow does the work, as in AutoAugment's own and timm's code,
so that an image looks the same in all of them.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (124, 116, 104)
"""Where an operation moves in what is outside: ImageNet's mean colour, as in timm's training."""

Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]

_ENHANCERS: dict[str, Callable] = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


def enhance(picture: Image.Image, what: str, factor: float) -> Image.Image:
    """Blends with the image that lacks it: 0 is without, 1 the same, 2 twice as much."""
    return _ENHANCERS[what](picture).enhance(factor)


def turn_hue(picture: Image.Image, turn: float) -> Image.Image:
    """Turns the hue by a fraction of the full circle, in steps of 1/256."""
    hue, saturation, value = picture.convert("HSV").split()
    levels = np.asarray(hue) + np.uint8(round(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(levels), saturation, value)).convert("RGB")


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _move(picture: Image.Image, matrix: tuple[float, ...], rng: np.random.Generator) -> Image.Image:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample=_resample(rng), fillcolor=FILL
    )


def _resample(rng: np.random.Generator) -> Image.Resampling:
    return Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC


def _rotate(picture: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    angle = _signed(3 * magnitude, rng)
    return picture.rotate(angle, resample=_resample(rng), fillcolor=FILL)


def _shear_x(picture: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _move(picture, (1, _signed(0.03 * magnitude, rng), 0, 0, 1, 0), rng)


def _shear_y(picture: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _move(picture, (1, 0, 0, _signed(0.03 * magnitude, rng), 1, 0), rng)


def _translate_x(picture: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _move(picture, (1, 0, _signed(0.045 * magnitude, rng) * picture.width, 0, 1, 0), rng)


def _translate_y(picture: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _move(picture, (1, 0, 0, 0, 1, _signed(0.045 * magnitude, rng) * picture.height), rng)


def _keep_bits(picture: Image.Image, bits: int) -> Image.Image:
    """Sets all but the highest bits to 0. Pillow's own posterize refuses to keep none: black."""
    mask = 0xFF & (0xFF << (8 - bits))
    return picture.point([level & mask for level in range(256)] * 3)


def _posterize(picture: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return _keep_bits(picture, max(0, min(8, int(0.4 * magnitude))))


def _posterize_increasing(
    picture: Image.Image, magnitude: float, rng: np.random.Generator
) -> Image.Image:
    return _keep_bits(picture, max(0, 4 - int(0.4 * magnitude)))


def _posterize_original(
    picture: Image.Image, magnitude: float, rng: np.random.Generator
) -> Image.Image:
    return _keep_bits(picture, min(8, 4 + int(0.4 * magnitude)))


def _solarize(picture: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(picture, min(256, int(25.6 * magnitude)))


def _solarize_increasing(
    picture: Image.Image, magnitude: float, rng: np.random.Generator
) -> Image.Image:
    return ImageOps.solarize(picture, 256 - min(256, int(25.6 * magnitude)))


def _solarize_add(picture: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    add = min(128, int(11 * magnitude))
    levels = [min(255, level + add) if level < 128 else level for level in range(256)]
    return picture.point(levels * 3)


def _enhancing(what: str) -> Operation:
    """Factor 0.1 to 1.9: magnitude 5 changes nothing."""
    return lambda picture, magnitude, rng: enhance(picture, what, 0.18 * magnitude + 0.1)


def _enhancing_increasing(what: str) -> Operation:
    """Factor 1 at magnitude 0, and further from it on either side with more."""
    return lambda picture, magnitude, rng: enhance(
        picture, what, max(0.1, 1 + _signed(0.09 * magnitude, rng))
    )


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda picture, magnitude, rng: ImageOps.autocontrast(picture),
    "equalize": lambda picture, magnitude, rng: ImageOps.equalize(picture),
    "invert": lambda picture, magnitude, rng: ImageOps.invert(picture),
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
