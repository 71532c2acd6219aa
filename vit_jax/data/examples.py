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
    captions_per_image: int = 1

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
        return self._tokenized([captions[int(rng.integers(len(captions)))]], rng)[0]

    def _captions(self, example: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        captions, count = captions_of(example), self.captions_per_image
        # Each caption once before any comes again.
        orders = [rng.permutation(len(captions)) for _ in range(-(-count // len(captions)))]
        return self._tokenized([captions[i] for i in np.concatenate(orders)[:count]], rng)

    def _tokenized(self, captions: list[str], rng: np.random.Generator) -> np.ndarray:
        """Token ids of captions, each in a random template."""
        assert self.tokenizer is not None  # see example_transform
        drawn = [self.templates[int(rng.integers(len(self.templates)))] for _ in captions]
        return self.tokenizer([t.format(c) for t, c in zip(drawn, captions, strict=True)])

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
    "captions": ExampleTransform._captions,
    "image": ExampleTransform._image,
    "label": ExampleTransform._label,
}


def example_transform(
    fields: Sequence[str],
    augment: Augmentation,
    tokenizer: Tokenizer | None = None,
    templates: Sequence[str] = ("{}",),
    captions_per_image: int = 1,
) -> ExampleTransform:
    """Builds the transform from an example to the fields that an objective reads.

    Args:
        fields: any of
            "image": the augmented image, uint8 (height * width * 3,), packed;
            "label": index of the class, int32;
            "tokens": token ids of a random caption in a random template, int32 (context_length,);
            "captions": the same of K random captions, int32 (K, context_length), drawn without
            replacement; those of an image with fewer captions are repeated equally often.
        augment: augmentation of the image.
        tokenizer: tokenizer of the captions, for "tokens" and "captions".
        templates: prompt templates with one `{}`, for "tokens" and "captions".
        captions_per_image: number K, for "captions".

    Raises:
        UserError: an unknown field, or "tokens" or "captions" without a tokenizer or templates.
    """
    for field in fields:
        check_name(field, _READERS, "field of a batch,")
    if {"tokens", "captions"} & {*fields}:
        if tokenizer is None:
            raise UserError("the objective reads tokens, but the model has no tokenizer")
        check_templates(templates)
    return ExampleTransform(tuple(fields), augment, tokenizer, tuple(templates), captions_per_image)


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


def check_classes(source: Source, num_classes: int | None, title: str) -> None:
    """Checks that a source has labels of as many classes as a model has outputs.

    Args:
        source: training source.
        num_classes: number of outputs of the model; None for any.
        title: name of the source in messages.

    Raises:
        UserError: the source has no labels, or another number of classes.
    """
    names = source.class_names
    if names is None:
        raise UserError(f"{title} has no labels: expected a source with classes")
    if num_classes not in (None, len(names)):
        raise UserError(
            f"{title} has {len(names)} classes, config.model.num_classes is {num_classes}: set it "
            f"to {len(names)}"
        )
