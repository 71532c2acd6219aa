"""Vision Transformer: ViT, DeiT, DeiT III, DINOv2, DINOv3, and the encoders of MAE and CLIP."""

from vit_jax.models.vit import siglip, zoo
from vit_jax.models.vit.model import ViTConfig as CONFIG

ALIASES = {**zoo.ALIASES, **siglip.ALIASES}
MODELS = {**zoo.MODELS, **siglip.MODELS}

__all__ = ["ALIASES", "CONFIG", "MODELS"]
