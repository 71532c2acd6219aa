"""Masked autoencoders (He et al. 2022)."""

from vit_jax.models.mae.model import MAEConfig as CONFIG
from vit_jax.models.mae.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
