"""CLIP's text tower alone, as diffusion models use it."""

from vit_jax.models.clip_text.model import CLIPTextConfig as CONFIG
from vit_jax.models.clip_text.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
