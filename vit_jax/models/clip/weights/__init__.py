"""Weights of dual encoders, CLIP, SigLIP and AIMv2, in the formats of other libraries."""

from vit_jax.models.clip.weights.aimv2 import TransformersAIMv2CLIP
from vit_jax.models.clip.weights.big_vision import BigVisionScannedSigLIP, BigVisionSigLIP
from vit_jax.models.clip.weights.openai import OpenAIClip
from vit_jax.models.clip.weights.siglip import OpenCLIPSigLIP
from vit_jax.models.clip.weights.transformers import (
    FlaxCLIP,
    TransformersCLIP,
    TransformersNaFlex,
)
from vit_jax.weights.format import Format

FORMATS: tuple[Format, ...] = (
    OpenAIClip(),
    OpenCLIPSigLIP(),
    TransformersCLIP(),
    TransformersNaFlex(),
    FlaxCLIP(),
    TransformersAIMv2CLIP(),
    BigVisionSigLIP(),
    BigVisionScannedSigLIP(),
)
