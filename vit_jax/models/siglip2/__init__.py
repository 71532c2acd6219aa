"""SigLIP 2's network with all parts of its training (Tschannen et al. 2025)."""

from vit_jax.models.siglip2.model import SigLIP2Config as CONFIG
from vit_jax.models.siglip2.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
