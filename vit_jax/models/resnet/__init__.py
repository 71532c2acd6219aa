"""TODO."""

from vit_jax.models.resnet.model import ResNetConfig as CONFIG
from vit_jax.models.resnet.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
