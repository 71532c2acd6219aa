"""Image augmentation on the host, before the model's preprocessing.

An augmentation is a string of transforms separated by `|`, with arguments as in Python:

    random_resized_crop(scale=(0.2, 1.0))|flip|randaugment(2, 9)|random_erasing(0.25)

Transforms receive images without alpha: it is composited on white, or on the colours of
`background`. The last transform must return the model's input size. The empty string is the model's
own preprocessing, as in evaluation.

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
"""

import ast
import dataclasses
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.components import Registry, parse
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
        "affine": "vit_jax.data.augment.geometry:Affine",
        "background": "vit_jax.data.augment.colors:Background",
        "color_jitter": "vit_jax.data.augment.colors:ColorJitter",
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
            uint8 (height, width, 3) of the model's input size.

        Raises:
            UserError: the image cannot be decoded, or the transforms leave another shape.
        """
        pixels: Any
        if isinstance(image, EncodedImage) and _has(self.transforms[:1], "reads_encoded"):
            pixels = dataclasses.replace(image, max_pixels=self.max_pixels)
        else:
            pixels = read_image(image, max_pixels=self.max_pixels)
            if not _has(self.transforms, "removes_alpha"):
                pixels = composite(pixels)
        if not self.transforms:
            return self.inputs(pixels)
        for transform in self.transforms:
            pixels = transform(pixels, rng)
        expected = (*self.inputs.size, 3)
        if pixels.shape != expected:
            raise UserError(
                f"the augmentation returned an image of shape {pixels.shape}, expected {expected}: "
                "resize, random_resized_crop and affine return images of the model's input size"
            )
        return pixels


def parse_augmentation(
    text: str, inputs: ImageInputs, max_pixels: int = MAX_PIXELS
) -> Augmentation:
    """Parses an augmentation.

    Args:
        text: transforms separated by `|`, see the module's docstring.
        inputs: the model's preprocessing, which the transforms read.
        max_pixels: see `read_image`.

    Raises:
        UserError: an unknown transform or argument, text of another form, or a transform that needs
            alpha after one that receives none.
    """
    parts = [part.strip() for part in text.split("|")] if text.strip() else []
    transforms = tuple(_parse_transform(part, inputs) for part in parts)
    _check_alpha(transforms, parts)
    return Augmentation(transforms, inputs, max_pixels)


def _has(transforms: Sequence[Any], mark: str) -> bool:
    """Whether a class attribute marks one of the transforms."""
    return any(getattr(transform, mark, False) for transform in transforms)


def _check_alpha(transforms: Sequence[Any], parts: Sequence[str]) -> None:
    """Refuses transforms without alpha before the one that removes it."""
    removing = [i for i, transform in enumerate(transforms) if _has([transform], "removes_alpha")]
    for i in range(removing[0] if removing else 0):
        if not _has([transforms[i]], "keeps_alpha"):
            raise UserError(
                f"augmentation: {parts[removing[0]]!r} comes after {parts[i]!r}, which needs an "
                f"image without alpha: put {parts[removing[0]]!r} first"
            )


def _parse_transform(text: str, inputs: ImageInputs) -> Transform:
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
