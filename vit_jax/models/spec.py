"""What a registered name stands for, beyond its parameters."""

import dataclasses
from typing import Any

from vit_jax.models.families import family_of

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the model's input.

    Attributes:
        resize: "crop" (shortest edge to size / crop_fraction, then centre crop), "squash" (to a square)
            or "pad" (longest edge to size, then pad with white).
        crop_fraction: fraction of the resized shortest edge that the crop keeps, for "crop".
        interpolation: "bicubic" or "bilinear", with antialias.
        mean: subtracted from values in [0, 1], one a channel.
        std: divisor, one a channel.
    """

    resize: str = "crop"
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A registered model.

    Attributes:
        architecture: a config dataclass of `families.FAMILIES`.
        preprocess: image to input.
        tokenizer: "trained" for one learned from the run's own captions, "clip" for OpenAI's, None
            for models without text.
    """

    architecture: Any
    preprocess: Preprocess
    tokenizer: str | None = None

    @property
    def family(self) -> str:
        """Name of the architecture's family."""
        return family_of(self.architecture)
