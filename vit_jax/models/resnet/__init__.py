"""ResNet v1.5 (He et al. 2016)."""

from vit_jax.models.resnet.model import ResNetConfig as CONFIG
from vit_jax.models.resnet.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
