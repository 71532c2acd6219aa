"""Specification of a registered model."""

import dataclasses
import math
from typing import Any

from vit_jax.errors import UserError
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
        inputs: image preprocessing; its size and patch size are set from the architecture. The size
            is (0, 0) for models that read no images.
        tokenizer: spec of the tokenizer, see `data.tokenizers`: "trained" for one trained on the
            captions of the run, "clip" for OpenAI's, None for models without text.
    """

    architecture: Any
    inputs: ImageInputs
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        """Sets the sizes of the inputs."""
        sizes: dict[str, Any] = {"size": image_size(self.architecture)}
        if self.inputs.is_naflex:
            sizes["patch_size"] = _naflex_patch_size(self.architecture)
        object.__setattr__(self, "inputs", dataclasses.replace(self.inputs, **sizes))

    @property
    def image_tokens(self) -> int:
        """Number of patches of an image.

        Raises:
            UserError: the image tower has no patches.
        """
        tower = getattr(self.architecture, "image", self.architecture)
        if not hasattr(tower, "grid"):
            raise UserError(
                "config.token_budget counts the patches of images: expected a model with a ViT; "
                f"found {type(tower).__name__}"
            )
        return math.prod(tower.grid)


def image_size(architecture: Any) -> Size:
    """Returns the (height, width) of the images that an architecture is made for, px.

    Args:
        architecture: dataclass with `image_size`, or with an image tower `image`; (0, 0) without.
    """
    tower = getattr(architecture, "image", architecture)
    return as_size(tower.image_size) if hasattr(tower, "image_size") else (0, 0)


def _naflex_patch_size(architecture: Any) -> int:
    """The patch size of an architecture whose image tower takes images of several sizes.

    Models around a ViT, as detectors and captioners, read its patches without their mask. So an
    architecture states itself that it does not.
    """
    tower = getattr(architecture, "image", architecture)
    if not (_masks_padding(architecture) and _masks_padding(tower)):
        raise UserError(
            "inputs.resize='naflex' needs a ViT with pooled features, alone or in a dual encoder "
            f"as siglip2_b16_naflex; found {type(architecture).__name__} with "
            f"{type(tower).__name__}"
        )
    tower.check_naflex()
    return tower.patch_size


def _masks_padding(architecture: Any) -> bool:
    """Whether the class of an architecture, not a base class, states so."""
    return vars(type(architecture)).get("masks_padding", False)
