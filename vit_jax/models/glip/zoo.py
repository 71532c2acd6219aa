"""GLIP (Li et al. 2022)."""

from vit_jax.models.bert.model import BertConfig
from vit_jax.models.glip.model import GlipConfig
from vit_jax.models.spec import DETECTION_INPUTS, ModelSpec
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.zoo import BACKBONE

# Table 1: GLIP-T (B), GLIP-T (C) and GLIP-T differ in their data. GLIP-T (A) has no fusion.
MODELS: dict[str, ModelSpec] = {
    "glip_tiny": ModelSpec(
        architecture=GlipConfig(
            image=SwinConfig(**BACKBONE, drop_path=0.2), text=BertConfig(context_length=256)
        ),
        inputs=DETECTION_INPUTS,
        tokenizer="huggingface",
    ),
}

ALIASES: dict[str, str] = {}
