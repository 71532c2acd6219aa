"""CLIP's ModifiedResNet (Radford et al. 2021), an image tower of `clip`."""

from vit_jax.models.clip_resnet.model import CLIPResNetConfig as CONFIG
from vit_jax.models.spec import ModelSpec

MODELS: dict[str, ModelSpec] = {}
ALIASES: dict[str, str] = {}

__all__ = ["ALIASES", "CONFIG", "MODELS"]
