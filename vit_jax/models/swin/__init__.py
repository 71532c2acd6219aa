"""Swin Transformer (Liu et al. 2021)."""

from vit_jax.models.swin.model import SwinConfig as CONFIG
from vit_jax.models.swin.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
