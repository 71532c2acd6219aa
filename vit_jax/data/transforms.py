"""Augmentation in NumPy: cheap enough for two cores, deterministic for a generator.

An augmentation is written as transforms separated by `|`, arguments as in Python:

    "background(white=0.3)|affine(rotate=10, scale=(0.8, 1.1))|color_jitter(hue=0.1)|cutout(0.2)"

A transform takes and returns a picture, uint8 (H, W, C). The first ones see it as the source has
it, with alpha if it has any; the last must leave (size, size, 3).
"""

import ast
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.pictures import Encoded
from vit_jax.data.preprocess import composite, preprocess
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError, lookup

Picture = np.ndarray
_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)


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
class Background:
    """Lays a picture with alpha on one colour; a picture without alpha stays as it is.

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
class Affine:
    """Random rotation, scale, aspect ratio, shear and shift; the border continues outwards.

    Each output pixel is the mean of four nearest neighbours on a grid of twice the resolution, a
    tenth of the cost of bicubic.

    Attributes:
        rotate: largest angle either way, degrees.
        scale: range of the size of the picture's content.
        aspect: largest log of the stretch of the axes either way.
        shear: largest shear either way.
        shift: largest shift either way, as a share of the side.
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
        # From the output grid, centred, to the picture.
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


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Hue, saturation, brightness and contrast in one linear map of the colours.

    Attributes:
        hue: largest rotation about the grey axis either way, radians.
        saturation: largest relative change either way.
        brightness: largest shift either way, as a share of the range.
        contrast: largest relative change about mid-grey either way.
        grey: probability of no colour at all.
        shade: largest relative brightness of one edge of the picture against its centre, a slope.
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
class Cutout:
    """Hides a rectangle behind one colour (DeVries and Taylor 2017).

    Attributes:
        probability: of doing it.
        size: range of each side, as a share of the picture's.
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


TRANSFORMS: dict[str, type] = {
    "resize": Resize,
    "background": Background,
    "affine": Affine,
    "color_jitter": ColorJitter,
    "cutout": Cutout,
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Transforms applied in turn."""

    transforms: tuple[Any, ...]
    size: int

    def __call__(self, image: Picture | Encoded, rng: np.random.Generator) -> Picture:
        picture = image.decode() if isinstance(image, Encoded) else image
        for transform in self.transforms:
            picture = transform(picture, rng)
        expected = (self.size, self.size, 3)
        if picture.shape != expected:
            raise UserError(
                f"the augmentation leaves pictures of shape {picture.shape}, expected {expected}: "
                "background removes alpha; resize and affine bring pictures to the model's size"
            )
        return picture


def parse_augmentation(text: str, *, size: int) -> Augmentation:
    """Reads an augmentation.

    Args:
        text: see the module; "" resizes as in evaluation.
        size: side of the model's input, px.

    Raises:
        UserError: unknown transform or argument, or text that is not of the form.
    """
    parts = [part.strip() for part in (text or "resize").split("|")]
    return Augmentation(tuple(_parse_transform(part, size) for part in parts), size)


def _parse_transform(text: str, size: int) -> Any:
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(call, [], [])
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise SyntaxError
        name = call.func.id
        args = [ast.literal_eval(arg) for arg in call.args]
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise UserError(
            f"transform {text!r}: expected the form name(argument, key=value)"
        ) from None
    transform = lookup(TRANSFORMS, name, "transform")
    if any(field.name == "output_size" for field in dataclasses.fields(transform)):
        kwargs["output_size"] = size
    try:
        return transform(*args, **kwargs)
    except TypeError as error:
        reason = str(error).partition("__init__() ")[2]
        raise UserError(f"transform {text!r}: {reason}") from None


def captions_of(example: dict[str, Any]) -> list[str]:
    """The captions of an example, the canonical one first; the class name where there are none."""
    captions = example.get("captions") or [example.get("name")]
    if captions == [None]:
        raise UserError(f"no captions and no name among the fields {sorted(example)}")
    return captions


@dataclasses.dataclass(frozen=True)
class ImageText:
    """An example with captions to what an image-text objective reads.

    Returns `image` uint8 (size * size * 3,) and `tokens` int32 (context_length,). One caption and
    one template are drawn. Pictures travel flat, since a TPU pads a last dimension of 3 to 128.
    """

    augment: Augmentation
    tokenizer: Tokenizer
    templates: Sequence[str]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        captions = captions_of(example)
        caption = captions[int(rng.integers(len(captions)))]
        template = self.templates[int(rng.integers(len(self.templates)))]
        return {
            "image": self.augment(example["image"], rng).reshape(-1),
            "tokens": self.tokenizer(template.format(caption))[0],
        }


@dataclasses.dataclass(frozen=True)
class ImageOnly:
    """An example to what an objective without labels reads: `image`, flat as in `ImageText`."""

    augment: Augmentation

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": self.augment(example["image"], rng).reshape(-1)}


@dataclasses.dataclass(frozen=True)
class ImageLabel:
    """A labelled example to what a classification objective reads.

    Returns `image` uint8 (size * size * 3,), flat as in `ImageText`, and `label`, int32.
    """

    augment: Augmentation

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {
            "image": self.augment(example["image"], rng).reshape(-1),
            "label": np.asarray(example["label"], np.int32),
        }


def _rotation_about_grey(angle: float) -> np.ndarray:
    """Rotation of RGB about (1, 1, 1), Rodrigues' formula; for row vectors."""
    cos, sin = math.cos(angle), math.sin(angle)
    cross = np.asarray([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / math.sqrt(3)
    return (cos * np.eye(3) + (1 - cos) / 3 + sin * cross).astype(np.float32)


def _saturate(factor: float) -> np.ndarray:
    """Blend of a colour with its luma; for row vectors."""
    grey = np.repeat(_LUMA[:, None], 3, axis=1)
    return (factor * np.eye(3) + (1 - factor) * grey).astype(np.float32)
