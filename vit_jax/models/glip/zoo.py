"""GLIP (Li et al. 2022)."""

from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.bert.model import BertConfig
from vit_jax.models.glip.model import GlipConfig
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from vit_jax.models.swin.model import SwinConfig

# Fields of a backbone that is part of a detector. The size is that of the longest side.
BACKBONE: dict[str, Any] = {
    "image_size": 1333,
    "fixed_windows": True,
    "final_norm": False,
    "position_resize": "bicubic",
    "drop_path": 0.2,
}

# Table 1: GLIP-T (B), GLIP-T (C) and GLIP-T differ in their data. GLIP-T (A) has no fusion.
MODELS: dict[str, ModelSpec] = {
    "glip_tiny": ModelSpec(
        architecture=GlipConfig(image=SwinConfig(**BACKBONE), text=BertConfig(context_length=256)),
        inputs=ImageInputs(
            resize="fit",
            interpolation="bilinear",
            shortest_edge=800,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        tokenizer="huggingface",
    ),
}

ALIASES: dict[str, str] = {}
