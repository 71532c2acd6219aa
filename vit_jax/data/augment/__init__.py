"""Image augmentation on the host, before the model's preprocessing.

An augmentation is a string of transforms separated by `|`, with arguments as in Python:

    random_resized_crop(scale=(0.2, 1.0))|flip|randaugment(2, 9)|random_erasing(0.25)

Transforms receive images without alpha: it is composited on white, or on the colours of
`background`. The last transform must return the model's input size. The empty string is the model's
own preprocessing, as in evaluation. Where the preprocessing is "naflex", it follows the transforms.

A transform is a frozen dataclass; its fields are the arguments:

    @dataclasses.dataclass(frozen=True)
    class Solarize:
        threshold: int = 128

        def __call__(self, image, rng):
            return np.where(image < self.threshold, image, 255 - image)

It maps an image, uint8 (H, W, 3), and a NumPy generator to an image. It must not change its input.
The class attribute `removes_alpha = True` marks a transform that receives an image with alpha,
uint8 (H, W, 4), and returns one without it; `keeps_alpha = True` marks one that may precede it.
A keyword-only field `inputs` receives the model's `ImageInputs`: size, interpolation, mean, std. A
transform from outside this package is named by its module: `flip|my_project.augment:Solarize(96)`.
All randomness comes from the generator, so results are the same for any number of workers.

For images with boxes, a transform has the method `with_boxes(image, rng)`, which maps a
`BoxedImage` to another one by its method `moved`, so that masks follow, or the class attribute
`keeps_boxes = True`, where it does not move pixels. One that makes an image of several has
`count(rng)`, their number, and `combine(images, rng)`:

    flip|random_crop|mosaic|color_jitter(0.2, 0.2)
"""

import ast
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.components import Registry, parse
from vit_jax.data.augment.boxed import BoxedImage
from vit_jax.data.images import MAX_PIXELS, EncodedImage, Pixels, read_image
from vit_jax.errors import UserError, unknown
from vit_jax.inputs import ImageInputs, composite

Transform = Callable[[Pixels, np.random.Generator], Pixels]

TRANSFORMS = Registry(
    "augmentation",
    {
        "resize": "vit_jax.data.augment.geometry:Resize",
        "random_resized_crop": "vit_jax.data.augment.geometry:RandomResizedCrop",
        "flip": "vit_jax.data.augment.geometry:Flip",
        "random_crop": "vit_jax.data.augment.boxes:RandomCrop",
        "scale_jitter": "vit_jax.data.augment.boxes:ScaleJitter",
        "mosaic": "vit_jax.data.augment.boxes:Mosaic",
        "affine": "vit_jax.data.augment.geometry:Affine",
        "background": "vit_jax.data.augment.colors:Background",
        "color_jitter": "vit_jax.data.augment.colors:ColorJitter",
        "grayscale": "vit_jax.data.augment.colors:Grayscale",
        "gaussian_blur": "vit_jax.data.augment.colors:GaussianBlur",
        "solarize": "vit_jax.data.augment.colors:Solarize",
        "color_shift": "vit_jax.data.augment.colors:ColorShift",
        "three_augment": "vit_jax.data.augment.colors:ThreeAugment",
        "randaugment": "vit_jax.data.augment.policies:RandAugment",
        "autoaugment": "vit_jax.data.augment.policies:AutoAugment",
        "cutout": "vit_jax.data.augment.erasing:Cutout",
        "random_erasing": "vit_jax.data.augment.erasing:RandomErasing",
    },
)

_CALL = re.compile(r"(?P<name>[\w.]+(?::\w+)?)\s*(?P<arguments>\(.*\))?", re.DOTALL)
_INPUTS = "inputs"  # field that receives the model's preprocessing


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A sequence of transforms.

    Attributes:
        transforms: transforms in the order in which they are applied; with none, the model's
            preprocessing.
        inputs: the model's preprocessing.
        max_pixels: see `read_image`.
    """

    transforms: tuple[Any, ...]
    inputs: ImageInputs
    max_pixels: int = MAX_PIXELS

    def __call__(self, image: Any, rng: np.random.Generator) -> Pixels:
        """Augments an image.

        Args:
            image: image of any kind, see `read_image`.
            rng: source of randomness.

        Returns:
            uint8 (height, width, 3), see `ImageInputs.size_of`.

        Raises:
            UserError: the image cannot be decoded, or the transforms leave another shape.
        """
        pixels: Any
        if isinstance(image, EncodedImage) and _has(self.transforms[:1], "reads_encoded"):
            pixels = dataclasses.replace(image, max_pixels=self.max_pixels)
        else:
            pixels = _read(self, image)
        if not self.transforms:
            return self.inputs(pixels)
        for transform in self.transforms:
            pixels = transform(pixels, rng)
        if self.inputs.is_naflex:
            return self.inputs(pixels)
        expected = (*self.inputs.size, 3)
        if pixels.shape != expected:
            raise UserError(
                f"the augmentation returned an image of shape {pixels.shape}, expected {expected}: "
                "resize, random_resized_crop and affine return images of the model's input size"
            )
        return pixels


@dataclasses.dataclass(frozen=True)
class BoxAugmentation:
    """A sequence of transforms of images with boxes, and the model's preprocessing after them.

    The attributes are those of `Augmentation`.
    """

    transforms: tuple[Any, ...]
    inputs: ImageInputs
    max_pixels: int = MAX_PIXELS

    def count(self, rng: np.random.Generator) -> int:
        """Draws the number of images that the next call takes."""
        counts = [each.count(rng) for each in self.transforms if hasattr(each, "combine")]
        return math.prod(counts)

    def read(self, image: Any, boxes: np.ndarray, first_row: int) -> BoxedImage:
        """Reads an image.

        Args:
            image: image of any kind, see `read_image`.
            boxes: x0, y0, x1, y1, px.
            first_row: row of the first box among the annotations of all images of a call.

        Raises:
            UserError: the image cannot be decoded.
        """
        rows = np.arange(first_row, first_row + len(boxes), dtype=np.int64)
        return BoxedImage.of(_read(self, image), boxes, rows)

    def __call__(self, images: Sequence[BoxedImage], rng: np.random.Generator) -> BoxedImage:
        """Augments one image, or several into one.

        Args:
            images: `count` images, a number from `self.count`.
            rng: source of randomness.

        Returns:
            An image of the model's input size, with boxes relative to it, in [0, 1].

        Raises:
            UserError: the model's preprocessing shows a part of an image only.
        """
        found = list(images)
        for transform in self.transforms:
            if hasattr(transform, "combine"):
                found = [transform.combine(found, rng)]
            elif hasattr(transform, "with_boxes"):
                found = [transform.with_boxes(image, rng) for image in found]
            else:
                found = [dataclasses.replace(x, image=transform(x.image, rng)) for x in found]
        (image,) = found
        height, width = self.inputs.extent(*image.size)
        moved = image.moved(self.inputs(image.image), (1 / height, 1 / width), (0, 0))
        return dataclasses.replace(moved, filled=self.inputs.scaled_size(*image.size))


def parse_augmentation(
    text: str, inputs: ImageInputs, max_pixels: int = MAX_PIXELS
) -> Augmentation:
    """Parses an augmentation.

    Args:
        text: transforms separated by `|`, see the module's docstring.
        inputs: the model's preprocessing, which the transforms read.
        max_pixels: see `read_image`.

    Raises:
        UserError: an unknown transform or argument, text of another form, a transform that needs
            boxes, or one that needs alpha after one that receives none.
    """
    transforms, parts = _parse(text, inputs)
    for transform, part in zip(transforms, parts, strict=True):
        if not callable(transform):
            raise UserError(
                f"augmentation {part!r} is for images with boxes: the objective reads none"
            )
    return Augmentation(transforms, inputs, max_pixels)


def parse_box_augmentation(
    text: str, inputs: ImageInputs, max_pixels: int = MAX_PIXELS
) -> BoxAugmentation:
    """Parses an augmentation of images with boxes. The arguments are those of `parse_augmentation`.

    Raises:
        UserError: see `parse_augmentation`; or a transform that moves pixels but not boxes, several
            that combine images, or preprocessing that shows a part of an image only.
    """
    inputs.extent(*inputs.size)  # refuses preprocessing that crops
    transforms, parts = _parse(text, inputs)
    for transform, part in zip(transforms, parts, strict=True):
        if not _has([transform], "combine", "with_boxes", "keeps_boxes"):
            raise UserError(
                f"augmentation {part!r} moves pixels and has no form for boxes: expected flip, "
                "random_crop, scale_jitter, mosaic, or transforms of colours"
            )
    if (
        len(
            combining := [p for t, p in zip(transforms, parts, strict=True) if _has([t], "combine")]
        )
        > 1
    ):
        raise UserError(
            f"augmentation: {' and '.join(combining)} both combine images, expected one"
        )
    return BoxAugmentation(transforms, inputs, max_pixels)


def _parse(text: str, inputs: ImageInputs) -> tuple[tuple[Any, ...], list[str]]:
    """Transforms and their texts."""
    parts = [part.strip() for part in text.split("|")] if text.strip() else []
    transforms = tuple(_parse_transform(part, inputs) for part in parts)
    _check_alpha(transforms, parts)
    return transforms, parts


def _read(augmentation: Augmentation | BoxAugmentation, image: Any) -> Pixels:
    """Decodes an image, and removes alpha unless a transform does so."""
    pixels = read_image(image, max_pixels=augmentation.max_pixels)
    return pixels if _has(augmentation.transforms, "removes_alpha") else composite(pixels)


def _has(transforms: Sequence[Any], *marks: str) -> bool:
    """Whether one of the transforms has one of the class attributes."""
    return any(getattr(transform, mark, False) for transform in transforms for mark in marks)


def _check_alpha(transforms: Sequence[Any], parts: Sequence[str]) -> None:
    """Refuses transforms without alpha before the one that removes it."""
    removing = [i for i, transform in enumerate(transforms) if _has([transform], "removes_alpha")]
    for i in range(removing[0] if removing else 0):
        if not _has([transforms[i]], "keeps_alpha"):
            raise UserError(
                f"augmentation: {parts[removing[0]]!r} comes after {parts[i]!r}, which needs an "
                f"image without alpha: put {parts[removing[0]]!r} first"
            )


def _parse_transform(text: str, inputs: ImageInputs) -> Any:
    name, positional, named = _parse_call(text)
    transform = TRANSFORMS.resolve(name)
    if not dataclasses.is_dataclass(transform):
        raise UserError(f"augmentation {name!r}: expected a dataclass whose fields are arguments")
    fields = {field.name: field for field in dataclasses.fields(transform)}
    takes_inputs = fields.pop(_INPUTS, None) is not None
    order = [key for key, field in fields.items() if not field.kw_only]
    listed = f"arguments of {name}: {', '.join(fields) or 'none'}"
    if len(positional) > len(order):
        raise UserError(f"{text!r}: {len(positional)} arguments without a name; {listed}")
    values = dict(zip(order, positional, strict=False))
    for key, value in named.items():
        if key not in fields:
            raise UserError(f"{text!r}: {unknown(key, fields, 'argument')}; {listed}")
        if key in values:
            raise UserError(f"{text!r}: the argument {key} is given twice; {listed}")
        values[key] = value
    if takes_inputs:
        values[_INPUTS] = inputs
    return parse(typing.cast(type, transform), values, name)


def _parse_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, positional and named arguments of `name(argument, key=value)`."""
    try:
        match = _CALL.fullmatch(text)
        if match is None:
            raise SyntaxError
        call = ast.parse(f"_{match['arguments'] or '()'}", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise SyntaxError
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise UserError(
            f"augmentation {text!r}: expected the form name(argument, key=value)"
        ) from None
    return match["name"], positional, named
