"""Dual encoders: CLIP, OpenCLIP, SigLIP, and a small one for the embedded emoji data."""

from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.clip import aimv2, open_clip, siglip
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.open_clip import clip_spec, clip_vit, text_tower
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.zoo import (
    BASE,
    GIANT,
    GIANT_MLP,
    GIGANTIC,
    GIGANTIC_MLP,
    HUGE,
    LARGE,
    Sizes,
    vit,
)


def _openai(sizes: Sizes, patch_size: int, width: int, **changes: Any) -> ModelSpec:
    """OpenAI's ViT models: QuickGELU, and a text tower of the width of the shared space."""
    text = text_tower(width, activation="quick_gelu")
    return _clip_vit(sizes, patch_size, text, width, **changes)


def _clip_vit(*arguments: Any, **changes: Any) -> ModelSpec:
    return clip_spec(clip_vit(*arguments, **changes))


def _clip_resnet(
    depths: tuple[int, ...], width: int, image_size: int, text: TextConfig, embed_dim: int
) -> ModelSpec:
    """CLIP's ResNets: attention pooling with heads of 64 features, into the shared space."""
    image = CLIPResNetConfig(
        image_size=image_size,
        depths=depths,
        width=width,
        num_heads=width // 2,
        embed_dim=embed_dim,
    )
    return clip_spec(
        CLIPConfig(image=image, text=text, embed_dim=embed_dim, image_projection=False)
    )


_EMOJI = ModelSpec(
    architecture=CLIPConfig(
        image=vit(
            (128, 6, 2),
            4,
            image_size=32,
            class_token=False,
            pool="mean",
            position_init="sincos",
            weight_init="clip",
            # Half of the patches take half of a step's time on a CPU.
            patch_dropout=0.5,
        ),
        text=TextConfig(
            vocab_size=1024,
            context_length=16,
            width=96,
            depth=2,
            num_heads=3,
            mlp_dim=384,
            activation="gelu",
        ),
        embed_dim=128,
    ),
    inputs=ImageInputs(resize="pad"),
    tokenizer="trained",
)

MODELS: dict[str, ModelSpec] = {
    # This project, for the data set that it contains.
    "clip_vit_emoji": _EMOJI,
    # Radford et al. 2021, tables 19 and 20.
    "clip_vit_b32": _openai(BASE, 32, 512),
    "clip_vit_b16": _openai(BASE, 16, 512),
    "clip_vit_l14": _openai(LARGE, 14, 768),
    "clip_vit_l14_336": _openai(LARGE, 14, 768, image_size=336),
    "clip_rn50": _clip_resnet(
        (3, 4, 6, 3), 64, 224, text_tower(512, activation="quick_gelu"), 1024
    ),
    "clip_rn101": _clip_resnet(
        (3, 4, 23, 3), 64, 224, text_tower(512, activation="quick_gelu"), 512
    ),
    "clip_rn50x4": _clip_resnet(
        (4, 6, 10, 6), 80, 288, text_tower(640, activation="quick_gelu"), 640
    ),
    "clip_rn50x16": _clip_resnet(
        (6, 8, 18, 8), 96, 384, text_tower(768, activation="quick_gelu"), 768
    ),
    "clip_rn50x64": _clip_resnet(
        (3, 15, 36, 10), 128, 448, text_tower(1024, activation="quick_gelu"), 1024
    ),
    # OpenCLIP's own training (Ilharco et al. 2021; Cherti et al. 2023): the exact GELU.
    "openclip_rn50": _clip_resnet((3, 4, 6, 3), 64, 224, text_tower(512), 1024),
    "openclip_rn101": _clip_resnet((3, 4, 23, 3), 64, 224, text_tower(512), 512),
    "openclip_vit_b32": _clip_vit(BASE, 32, text_tower(512), 512),
    "openclip_vit_b16": _clip_vit(BASE, 16, text_tower(512), 512),
    "openclip_vit_l14": _clip_vit(LARGE, 14, text_tower(768), 768),
    "openclip_vit_h14": _clip_vit(HUGE, 14, text_tower(1024, 24), 1024),
    "openclip_vit_g14": _clip_vit(GIANT, 14, text_tower(1024, 24), 1024, mlp_dim=GIANT_MLP),
    "openclip_vit_bigg14": _clip_vit(
        GIGANTIC, 14, text_tower(1280, 32), 1280, mlp_dim=GIGANTIC_MLP
    ),
    **open_clip.MODELS,
    **siglip.MODELS,
    **aimv2.MODELS,
}

ALIASES: dict[str, str] = {
    **open_clip.ALIASES,
    **siglip.ALIASES,
    **aimv2.ALIASES,
    # OpenAI's package.
    "ViT-B/32": "clip_vit_b32",
    "ViT-B/16": "clip_vit_b16",
    "ViT-L/14": "clip_vit_l14",
    "ViT-L/14@336px": "clip_vit_l14_336",
    "RN50x4": "clip_rn50x4",
    "RN50x16": "clip_rn50x16",
    "RN50x64": "clip_rn50x64",
    # open_clip. Its plain names have the exact GELU; OpenAI's weights belong to the names that end
    # in quickgelu.
    "ViT-B-32-quickgelu": "clip_vit_b32",
    "ViT-B-16-quickgelu": "clip_vit_b16",
    "ViT-L-14-quickgelu": "clip_vit_l14",
    "ViT-L-14-336-quickgelu": "clip_vit_l14_336",
    "RN50-quickgelu": "clip_rn50",
    "RN101-quickgelu": "clip_rn101",
    "RN50x4-quickgelu": "clip_rn50x4",
    "RN50x16-quickgelu": "clip_rn50x16",
    "RN50x64-quickgelu": "clip_rn50x64",
    "RN50": "openclip_rn50",
    "RN101": "openclip_rn101",
    "ViT-B-32": "openclip_vit_b32",
    "ViT-B-16": "openclip_vit_b16",
    "ViT-L-14": "openclip_vit_l14",
    "ViT-H-14": "openclip_vit_h14",
    "ViT-g-14": "openclip_vit_g14",
    "ViT-bigG-14": "openclip_vit_bigg14",
    # transformers.
    "clip-vit-base-patch32": "clip_vit_b32",
    "clip-vit-base-patch16": "clip_vit_b16",
    "clip-vit-large-patch14": "clip_vit_l14",
    "clip-vit-large-patch14-336": "clip_vit_l14_336",
    # LAION's repositories on the Hugging Face hub.
    "CLIP-ViT-B-32-laion2B-s34B-b79K": "openclip_vit_b32",
    "CLIP-ViT-B-16-laion2B-s34B-b88K": "openclip_vit_b16",
    "CLIP-ViT-H-14-laion2B-s32B-b79K": "openclip_vit_h14",
    "CLIP-ViT-g-14-laion2B-s12B-b42K": "openclip_vit_g14",
    "CLIP-ViT-bigG-14-laion2B-39B-b160k": "openclip_vit_bigg14",
}
