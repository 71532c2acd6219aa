"""GLIP (Li et al. 2022): detection by the phrases of a caption, with deep fusion."""

from vit_jax.models.glip.model import GlipConfig as CONFIG
from vit_jax.models.glip.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
