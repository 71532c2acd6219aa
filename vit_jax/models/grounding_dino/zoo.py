"""Grounding DINO (Liu et al. 2023)."""

from typing import Any

from vit_jax.models.bert.model import BertConfig
from vit_jax.models.grounding_dino.model import GroundingDinoConfig
from vit_jax.models.spec import DETECTION_INPUTS, ModelSpec
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.zoo import BACKBONE, BASE_HEADS, SMALL_DEPTHS


def _grounding_dino(**backbone: Any) -> ModelSpec:
    return ModelSpec(
        architecture=GroundingDinoConfig(
            image=SwinConfig(**BACKBONE, **backbone), text=BertConfig(context_length=256)
        ),
        inputs=DETECTION_INPUTS,
        tokenizer="huggingface",
    )


# Liu et al. 2023, section 4.1: Swin-T, and Swin-B of 384 px.
MODELS: dict[str, ModelSpec] = {
    "grounding_dino_tiny": _grounding_dino(),
    "grounding_dino_base": _grounding_dino(
        width=128, depths=SMALL_DEPTHS, num_heads=BASE_HEADS, window_size=12
    ),
}

ALIASES: dict[str, str] = {}
