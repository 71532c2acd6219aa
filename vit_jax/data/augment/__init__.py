"""Augmentation on the host: cheap enough for two cores, deterministic for a generator.

An augmentation is written as transforms separated by `|`, arguments as in Python:

    "random_resized_crop(scale=(0.2, 1.0))|flip|randaugment(2, 9)|random_erasing(0.25)"

A transform takes and returns an image, uint8 (H, W, C). The first ones see it as the source has
it, with alpha if it has any; the last must leave (size, size, 3).
"""

import ast
import dataclasses
from typing import Any

import numpy as np

from vit_jax.data.augment import colors, erasing, geometry, policies
from vit_jax.data.images import EncodedImage, Picture
from vit_jax.errors import UserError, lookup

TRANSFORMS: dict[str, type] = {
    "resize": geometry.Resize,
    "random_resized_crop": geometry.RandomResizedCrop,
    "flip": geometry.Flip,
    "affine": geometry.Affine,
    "background": colors.Background,
    "color_jitter": colors.ColorJitter,
    "color_shift": colors.ColorShift,
    "three_augment": colors.ThreeAugment,
    "randaugment": policies.RandAugment,
    "autoaugment": policies.AutoAugment,
    "cutout": erasing.Cutout,
    "random_erasing": erasing.RandomErasing,
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Transforms applied in turn."""

    transforms: tuple[Any, ...]
    size: int

    def __call__(self, image: Picture | EncodedImage, rng: np.random.Generator) -> Picture:
        picture: Any = image
        if isinstance(image, EncodedImage) and not getattr(
            self.transforms[0], "reads_files", False
        ):
            picture = image.decode()
        for transform in self.transforms:
            picture = transform(picture, rng)
        expected = (self.size, self.size, 3)
        if picture.shape != expected:
            raise UserError(
                f"the augmentation leaves pictures of shape {picture.shape}, expected {expected}: "
                "background removes alpha; resize, random_resized_crop and affine bring pictures "
                "to the model's size"
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
