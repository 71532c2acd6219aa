"""Dual encoders with a captioning decoder (SigLIP 2, Tschannen et al. 2025)."""

from vit_jax.models.clip_captioner.model import CLIPCaptionerConfig as CONFIG
from vit_jax.models.clip_captioner.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
