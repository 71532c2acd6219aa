"""Transforms from an example of a source to the fields that an objective reads."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data.augment import Augmentation
from vit_jax.data.sources.base import Source, captions_of
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError, check_name

__all__ = ["ExampleTransform", "OtherTokens", "captions_of", "check_classes", "example_transform"]

_Fields = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class OtherTokens:
    """A field of a batch: the text of "tokens" for another model than the trained one.

    Attributes:
        length: number of tokens of a text.
        tokenizer: tokenizer of the other model; None to plan a run.
    """

    length: int
    tokenizer: Tokenizer | None


@dataclasses.dataclass(frozen=True)
class ExampleTransform:
    """Reads the fields of a batch from one example. See `example_transform`."""

    fields: tuple[str, ...]
    augment: Augmentation
    tokenizer: Tokenizer | None
    templates: tuple[str, ...]
    captions_per_image: int = 1
    other_tokenizers: Mapping[str, Tokenizer] = dataclasses.field(default_factory=dict)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Transforms an example.

        Args:
            example: fields of the source's example.
            rng: source of randomness. Captions are drawn before the augmentation.

        Raises:
            UserError: the image cannot be decoded, or a field is missing.
        """
        found: _Fields = {}
        for field, read in _READERS.items():
            if field in self.fields:
                found |= read(self, example, rng)
        return found

    def _tokens(self, example: dict[str, Any], rng: np.random.Generator) -> _Fields:
        assert self.tokenizer is not None  # see example_transform
        captions = captions_of(example)
        text = self._texts([captions[int(rng.integers(len(captions)))]], rng)
        others = {name: tokenizer(text)[0] for name, tokenizer in self.other_tokenizers.items()}
        return {"tokens": self.tokenizer(text)[0], **others}

    def _captions(self, example: dict[str, Any], rng: np.random.Generator) -> _Fields:
        assert self.tokenizer is not None  # see example_transform
        captions, count = captions_of(example), self.captions_per_image
        # Each caption once before any comes again.
        orders = [rng.permutation(len(captions)) for _ in range(-(-count // len(captions)))]
        texts = self._texts([captions[i] for i in np.concatenate(orders)[:count]], rng)
        return {"captions": self.tokenizer(texts)}

    def _texts(self, captions: list[str], rng: np.random.Generator) -> list[str]:
        """Captions, each in a random template."""
        drawn = [self.templates[int(rng.integers(len(self.templates)))] for _ in captions]
        return [t.format(c) for t, c in zip(drawn, captions, strict=True)]

    def _image(self, example: dict[str, Any], rng: np.random.Generator) -> _Fields:
        return {"image": self.augment.inputs.pack(self.augment(example["image"], rng))}

    def _label(self, example: dict[str, Any], rng: np.random.Generator) -> _Fields:
        if "label" not in example:
            raise UserError(f"{example.get('key', 'an example')} has no label")
        return {"label": np.asarray(example["label"], np.int32)}


_Reader = Callable[[ExampleTransform, dict[str, Any], np.random.Generator], _Fields]

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
    other_tokens: Mapping[str, OtherTokens] | None = None,
) -> ExampleTransform:
    """Builds the transform from an example to the fields that an objective reads.

    Args:
        fields: any of
            "image": the augmented image, uint8 (height * width * 3,), packed;
            "label": index of the class, int32;
            "tokens": token ids of a random caption in a random template, int32 (context_length,);
            "captions": the same of K random captions, int32 (K, context_length), drawn without
            replacement; those of an image with fewer captions are repeated equally often;
            a name in `other_tokens`: the text of "tokens" for another model, int32 (length,).
        augment: augmentation of the image.
        tokenizer: tokenizer of the captions, for "tokens" and "captions".
        templates: prompt templates with one `{}`, for "tokens" and "captions".
        captions_per_image: number K, for "captions".
        other_tokens: tokens of the text of "tokens" for other models, by field.

    Raises:
        UserError: an unknown field, or "tokens" or "captions" without a tokenizer or templates.
    """
    others = {name: x.tokenizer for name, x in (other_tokens or {}).items() if x.tokenizer}
    for field in fields:
        check_name(field, [*_READERS, *others], "field of a batch,")
    if {"tokens", "captions"} & {*fields}:
        if tokenizer is None:
            raise UserError("the objective reads tokens, but the model has no tokenizer")
        check_templates(templates)
    return ExampleTransform(
        tuple(fields), augment, tokenizer, tuple(templates), captions_per_image, others
    )


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
