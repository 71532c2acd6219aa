"""SigLIP 2 with the decoder and the heads of its training, which are not published."""

import dataclasses

from vit_jax.models.clip_captioner.zoo import MODELS as CAPTIONERS
from vit_jax.models.siglip2.model import SigLIP2Config
from vit_jax.models.spec import ModelSpec


def _with_heads(name: str) -> ModelSpec:
    """The heads have the sizes of DINO, which SILC uses (Naeem et al. 2024)."""
    spec = CAPTIONERS[name]
    architecture = SigLIP2Config(**vars(spec.architecture))
    return dataclasses.replace(spec, architecture=architecture)


MODELS: dict[str, ModelSpec] = {"siglip2_b16_pretraining": _with_heads("siglip2_b16_captioner")}

ALIASES: dict[str, str] = {}
