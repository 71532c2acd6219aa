"""Vision Transformer: ViT, DeiT, DeiT III, DINOv2, DINOv3, and the encoders of MAE and CLIP."""

from vit_jax.models.vit.model import ViTConfig as CONFIG
from vit_jax.models.vit.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
