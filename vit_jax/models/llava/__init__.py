"""LLaVA's vision side: a CLIP tower and the projector into the language model."""

from vit_jax.models.llava.model import LlavaConfig as CONFIG
from vit_jax.models.llava.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
