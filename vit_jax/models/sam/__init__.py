"""SAM (Kirillov et al. 2023): masks by points, boxes and masks."""

from vit_jax.models.sam.model import SamConfig as CONFIG
from vit_jax.models.sam.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
