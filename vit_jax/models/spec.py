"""Specification of a registered model."""

import dataclasses
from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.sizes import Size, as_size

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of detectors after DETR (Carion et al. 2020): shorter side 800 px, the longer one limited.
DETECTION_INPUTS = ImageInputs(
    resize="fit",
    interpolation="bilinear",
    shortest_edge=800,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture, its image preprocessing and its tokenizer.

    Attributes:
        architecture: dataclass of an architecture, see `registry.ARCHITECTURES`.
        inputs: image preprocessing; its size is set from the architecture, and is (0, 0) for models
            that read no images.
        tokenizer: spec of the tokenizer, see `data.tokenizers`: "trained" for one trained on the
            captions of the run, "clip" for OpenAI's, None for models without text.
    """

    architecture: Any
    inputs: ImageInputs
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        """Sets the size of the inputs."""
        size = image_size(self.architecture)
        object.__setattr__(self, "inputs", dataclasses.replace(self.inputs, size=size))


def image_size(architecture: Any) -> Size:
    """Returns the (height, width) of the images that an architecture is made for, px.

    Args:
        architecture: dataclass with `image_size`, or with an image tower `image`; (0, 0) without.
    """
    tower = getattr(architecture, "image", architecture)
    return as_size(tower.image_size) if hasattr(tower, "image_size") else (0, 0)
