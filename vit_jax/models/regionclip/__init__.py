"""RegionCLIP: given boxes classified by words."""

from vit_jax.models.regionclip.model import RegionCLIPConfig as CONFIG
from vit_jax.models.regionclip.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
