"""From an example of a source to what an objective reads."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.augment import Augmentation
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError


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
    one template are drawn. Images travel flat, since a TPU pads a last dimension of 3 to 128.
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
