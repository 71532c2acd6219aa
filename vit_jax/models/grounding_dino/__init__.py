"""Grounding DINO (Liu et al. 2023): detection by the phrases of a caption."""

from vit_jax.models.grounding_dino.model import GroundingDinoConfig as CONFIG
from vit_jax.models.grounding_dino.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
