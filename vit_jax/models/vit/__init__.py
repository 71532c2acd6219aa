"""ViT, DeiT, DeiT III, DINOv2, DINOv3, AIMv2, and the encoders of MAE, CLIP and SigLIP."""

from vit_jax.models.vit import aimv2, siglip, zoo
from vit_jax.models.vit.model import ViTConfig as CONFIG

ALIASES = {**zoo.ALIASES, **siglip.ALIASES, **aimv2.ALIASES}
MODELS = {**zoo.MODELS, **siglip.MODELS, **aimv2.MODELS}

__all__ = ["ALIASES", "CONFIG", "MODELS"]
