"""Contrastive captioners (CoCa, Yu et al. 2022)."""

from vit_jax.models.coca.model import CoCaConfig as CONFIG
from vit_jax.models.coca.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
