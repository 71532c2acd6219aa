"""Dual encoders: CLIP, OpenCLIP, SigLIP, AIMv2."""

from vit_jax.models.clip.model import CLIPConfig as CONFIG
from vit_jax.models.clip.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
