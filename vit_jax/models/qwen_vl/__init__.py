"""Qwen-VL's vision side: a large ViT and the resampler into the language model."""

from vit_jax.models.qwen_vl.model import QwenVLConfig as CONFIG
from vit_jax.models.qwen_vl.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
