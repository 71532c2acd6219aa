"""Captioners: an image encoder with a decoder (CapPa, Tschannen et al. 2023)."""

from vit_jax.models.cappa.model import CapPaConfig as CONFIG
from vit_jax.models.cappa.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
