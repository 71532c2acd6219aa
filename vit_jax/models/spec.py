"""What a registered name stands for, beyond its parameters."""

import dataclasses
from typing import Any

from vit_jax.inputs import ImageInputs

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model without parameters, and how images and texts become its inputs.

    Attributes:
        architecture: dataclass of an architecture, see `registry.ARCHITECTURES`.
        inputs: image preprocessing. Its size is that of the architecture.
        tokenizer: spec of the tokenizer, see `data.tokenizers`: "trained" for one learned from the
            run's own captions, "clip" for OpenAI's, None for models without text.
    """

    architecture: Any
    inputs: ImageInputs
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        size = image_size(self.architecture)
        object.__setattr__(self, "inputs", dataclasses.replace(self.inputs, size=size))


def image_size(architecture: Any) -> tuple[int, int]:
    """Height and width of the images that an architecture was made for, px."""
    size = getattr(architecture, "image", architecture).image_size
    return (size, size) if isinstance(size, int) else tuple(size)
