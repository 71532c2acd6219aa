"""AIMv2's dual encoder: a text tower tuned to the locked image tower (Fini et al. 2024, LiT)."""

import dataclasses

from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.aimv2 import BLOCKS
from vit_jax.models.vit.aimv2 import MODELS as TOWERS

_TOWER = TOWERS["aimv2_l14"]

MODELS: dict[str, ModelSpec] = {
    "aimv2_l14_lit": ModelSpec(
        architecture=CLIPConfig(
            image=dataclasses.replace(_TOWER.architecture, pool="query"),
            text=TextConfig(width=768, depth=12, num_heads=6, mlp_dim=2048, **BLOCKS),
            embed_dim=768,
        ),
        inputs=_TOWER.inputs,
        tokenizer="clip",
    )
}

ALIASES: dict[str, str] = {"aimv2-large-patch14-224-lit": "aimv2_l14_lit"}
