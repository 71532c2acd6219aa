"""Transforms from an example of a source to the fields that an objective reads."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.data.augment import Augmentation
from vit_jax.data.sources.base import Source, captions_of
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError, check_name

__all__ = ["ExampleTransform", "captions_of", "check_classes", "example_transform"]


@dataclasses.dataclass(frozen=True)
class ExampleTransform:
    """Reads the fields of a batch from one example. See `example_transform`."""

    fields: tuple[str, ...]
    augment: Augmentation
    tokenizer: Tokenizer | None
    templates: tuple[str, ...]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Transforms an example.

        Args:
            example: fields of the source's example.
            rng: source of randomness. Captions are drawn before the augmentation.

        Raises:
            UserError: the image cannot be decoded, or a field is missing.
        """
        return {
            field: read(self, example, rng)
            for field, read in _READERS.items()
            if field in self.fields
        }

    def _tokens(self, example: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        captions = captions_of(example)
        caption = captions[int(rng.integers(len(captions)))]
        template = self.templates[int(rng.integers(len(self.templates)))]
        assert self.tokenizer is not None  # see example_transform
        return self.tokenizer(template.format(caption))[0]

    def _image(self, example: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        return self.augment.inputs.pack(self.augment(example["image"], rng))

    def _label(self, example: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        if "label" not in example:
            raise UserError(f"{example.get('key', 'an example')} has no label")
        return np.asarray(example["label"], np.int32)


_Reader = Callable[[ExampleTransform, dict[str, Any], np.random.Generator], np.ndarray]

# In the order in which they draw random numbers.
_READERS: dict[str, _Reader] = {
    "tokens": ExampleTransform._tokens,
    "image": ExampleTransform._image,
    "label": ExampleTransform._label,
}


def example_transform(
    fields: Sequence[str],
    augment: Augmentation,
    tokenizer: Tokenizer | None = None,
    templates: Sequence[str] = ("{}",),
) -> ExampleTransform:
    """Builds the transform from an example to the fields that an objective reads.

    Args:
        fields: any of
            "image": the augmented image, uint8 (height * width * 3,), packed;
            "label": index of the class, int32;
            "tokens": token ids of a random caption in a random template, int32 (context_length,).
        augment: augmentation of the image.
        tokenizer: tokenizer of the captions, for "tokens".
        templates: prompt templates with one `{}`, for "tokens".

    Raises:
        UserError: an unknown field, or "tokens" without a tokenizer or templates.
    """
    for field in fields:
        check_name(field, _READERS, "field of a batch,")
    if "tokens" in fields and tokenizer is None:
        raise UserError("the objective reads tokens, but the model has no tokenizer")
    if "tokens" in fields:
        check_templates(templates)
    return ExampleTransform(tuple(fields), augment, tokenizer, tuple(templates))


def check_templates(templates: Sequence[str]) -> None:
    """Checks prompt templates.

    Args:
        templates: templates, each with one `{}` for a caption or a class name.

    Raises:
        UserError: the list is empty, or a template does not have exactly one `{}`.
    """
    if not templates:
        raise UserError("templates is empty: expected at least one prompt template, as '{}'")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"prompt template {template!r}: expected exactly one {{}}")


def check_classes(source: Source, num_classes: int, title: str) -> None:
    """Checks that a source has labels of as many classes as a model has outputs.

    Args:
        source: training source.
        num_classes: number of outputs of the model.
        title: name of the source in messages.

    Raises:
        UserError: the source has no labels, or another number of classes.
    """
    names = source.class_names
    if names is None:
        raise UserError(f"{title} has no labels: expected a source with classes")
    if len(names) != num_classes:
        raise UserError(
            f"{title} has {len(names)} classes, config.model.num_classes is {num_classes}: set it "
            f"to {len(names)}"
        )
