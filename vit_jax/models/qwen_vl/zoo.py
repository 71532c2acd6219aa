"""Qwen-VL and Qwen-VL-Chat, whose vision sides have one architecture."""

from vit_jax.inputs import ImageInputs
from vit_jax.models.qwen_vl.model import POSITION_RULE, QwenVLConfig
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD, ModelSpec
from vit_jax.models.vit.zoo import GIGANTIC, GIGANTIC_MLP, vit

MODELS: dict[str, ModelSpec] = {
    # Bai et al. 2023, section 2.1: the shape of OpenCLIP's bigG. The positions are those of 224 px.
    "qwen_vl": ModelSpec(
        architecture=QwenVLConfig(
            image=vit(
                GIGANTIC,
                14,
                image_size=448,
                mlp_dim=GIGANTIC_MLP,
                class_token=False,
                pool="none",
                position_grid=(16, 16),
                position_resize=POSITION_RULE,
                pre_norm=True,
                patch_bias=False,
            )
        ),
        inputs=ImageInputs(resize="squash", mean=CLIP_MEAN, std=CLIP_STD),
    )
}

ALIASES: dict[str, str] = {"Qwen-VL-Chat": "qwen_vl"}
