"""ViTs with projection heads for self-distillation: DINO, iBOT and DINOv2."""

from vit_jax.models.dino.model import DINOConfig as CONFIG
from vit_jax.models.dino.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
