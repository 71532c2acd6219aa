"""Vision Transformers: ViT, DeiT, DeiT III and DINOv2."""

import dataclasses
from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.names import with_tags
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from vit_jax.models.vit.model import ViTConfig

# Width, depth, heads.
Sizes = tuple[int, int, int]

# Ti, S: Touvron et al. 2021 (DeiT), table 1. M: Touvron et al. 2022 (DeiT III).
TINY, SMALL, MEDIUM = (192, 12, 3), (384, 12, 6), (512, 12, 8)
# B, L, H: Dosovitskiy et al. 2021, table 1.
BASE, LARGE, HUGE = (768, 12, 12), (1024, 24, 16), (1280, 32, 16)
# g, G: Zhai et al. 2022, table 2. So400m: Alabdulmohsin et al. 2023.
GIANT, GIGANTIC, SO400M = (1408, 40, 16), (1664, 48, 16), (1152, 27, 16)
GIANT_MLP, GIGANTIC_MLP, SO400M_MLP = 6144, 8192, 4304


def vit(sizes: Sizes, patch_size: int, **changes: Any) -> ViTConfig:
    """Builds an architecture whose MLP has four times the width by default.

    Args:
        sizes: width, depth and heads.
        patch_size: side of a patch, px.
        **changes: other fields of `ViTConfig`.
    """
    width, depth, num_heads = sizes
    fields = {"mlp_dim": 4 * width, **changes}
    return ViTConfig(width=width, depth=depth, num_heads=num_heads, patch_size=patch_size, **fields)


def _classifier(config: ViTConfig, **inputs: Any) -> ModelSpec:
    """1000 classes, those of ImageNet-1k."""
    return ModelSpec(
        architecture=dataclasses.replace(config, num_classes=1000),
        inputs=ImageInputs(**inputs),
    )


def _vit(sizes: Sizes, patch_size: int, **changes: Any) -> ModelSpec:
    """ViT (Dosovitskiy et al. 2021) with the preprocessing of AugReg (Steiner et al. 2022)."""
    return _classifier(vit(sizes, patch_size, weight_init="xavier", **changes), crop_fraction=0.9)


def _deit(sizes: Sizes, patch_size: int, **changes: Any) -> ModelSpec:
    """DeiT (Touvron et al. 2021)."""
    crop = 1.0 if changes.get("image_size", 224) > 224 else 0.9
    return _classifier(
        vit(sizes, patch_size, **changes), crop_fraction=crop, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def _deit3(sizes: Sizes, patch_size: int, **changes: Any) -> ModelSpec:
    """DeiT III (Touvron et al. 2022): LayerScale, and no position for the class token."""
    config = vit(sizes, patch_size, layer_scale=1e-6, prefix_positions=False, **changes)
    return _classifier(config, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _dinov2(sizes: Sizes, **changes: Any) -> ModelSpec:
    """DINOv2 (Oquab et al. 2024) without a head; with registers: Darcet et al. 2024."""
    config = vit(sizes, 14, image_size=518, layer_scale=1e-5, **changes)
    return ModelSpec(
        architecture=config,
        inputs=ImageInputs(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


MODELS: dict[str, ModelSpec] = {
    # Dosovitskiy et al. 2021, table 1; Steiner et al. 2022 (Ti and S); Zhai et al. 2022, table 2.
    "vit_ti16": _vit(TINY, 16),
    "vit_s32": _vit(SMALL, 32),
    "vit_s16": _vit(SMALL, 16),
    "vit_s8": _vit(SMALL, 8),
    "vit_b32": _vit(BASE, 32),
    "vit_b16": _vit(BASE, 16),
    "vit_b16_384": _vit(BASE, 16, image_size=384),
    "vit_b8": _vit(BASE, 8),
    "vit_l32": _vit(LARGE, 32),
    "vit_l16": _vit(LARGE, 16),
    "vit_l16_384": _vit(LARGE, 16, image_size=384),
    "vit_l14": _vit(LARGE, 14),
    "vit_h14": _vit(HUGE, 14),
    # Alabdulmohsin et al. 2023; the two largest: Zhai et al. 2022, table 2.
    "vit_so400m14": _vit(SO400M, 14, mlp_dim=SO400M_MLP, class_token=False, pool="map"),
    "vit_giant14": _vit(GIANT, 14, mlp_dim=GIANT_MLP),
    "vit_gigantic14": _vit(GIGANTIC, 14, mlp_dim=GIGANTIC_MLP),
    # Touvron et al. 2021, table 1.
    "deit_ti16": _deit(TINY, 16),
    "deit_s16": _deit(SMALL, 16),
    "deit_b16": _deit(BASE, 16),
    "deit_b16_384": _deit(BASE, 16, image_size=384),
    # With a distillation token: Touvron et al. 2021, section 4.
    "deit_ti16_distilled": _deit(TINY, 16, distillation=True),
    "deit_s16_distilled": _deit(SMALL, 16, distillation=True),
    "deit_b16_distilled": _deit(BASE, 16, distillation=True),
    "deit_b16_distilled_384": _deit(BASE, 16, distillation=True, image_size=384),
    # Touvron et al. 2022.
    "deit3_s16": _deit3(SMALL, 16),
    "deit3_m16": _deit3(MEDIUM, 16),
    "deit3_b16": _deit3(BASE, 16),
    "deit3_l16": _deit3(LARGE, 16),
    "deit3_h14": _deit3(HUGE, 14),
    # Oquab et al. 2024.
    "dinov2_s14": _dinov2(SMALL),
    "dinov2_b14": _dinov2(BASE),
    "dinov2_l14": _dinov2(LARGE),
    # With registers: Darcet et al. 2024.
    "dinov2_s14_registers": _dinov2(SMALL, num_registers=4),
    "dinov2_b14_registers": _dinov2(BASE, num_registers=4),
    "dinov2_l14_registers": _dinov2(LARGE, num_registers=4),
}

# timm's names, which transformers' are as well: google/vit-base-patch16-224 and
# facebook/deit-base-patch16-224 differ from them only in spelling.
_VIT = {
    "vit_tiny_patch16_224": "vit_ti16",
    "vit_small_patch32_224": "vit_s32",
    "vit_small_patch16_224": "vit_s16",
    "vit_small_patch8_224": "vit_s8",
    "vit_base_patch32_224": "vit_b32",
    "vit_base_patch16_224": "vit_b16",
    "vit_base_patch16_384": "vit_b16_384",
    "vit_base_patch8_224": "vit_b8",
    "vit_large_patch32_224": "vit_l32",
    "vit_large_patch16_224": "vit_l16",
    "vit_large_patch16_384": "vit_l16_384",
    "vit_large_patch14_224": "vit_l14",
    "vit_huge_patch14_224": "vit_h14",
    "vit_giant_patch14_224": "vit_giant14",
    "vit_gigantic_patch14_224": "vit_gigantic14",
}
_DEIT = {
    "deit_tiny_patch16_224": "deit_ti16",
    "deit_small_patch16_224": "deit_s16",
    "deit_base_patch16_224": "deit_b16",
    "deit_base_patch16_384": "deit_b16_384",
    "deit_tiny_distilled_patch16_224": "deit_ti16_distilled",
    "deit_small_distilled_patch16_224": "deit_s16_distilled",
    "deit_base_distilled_patch16_224": "deit_b16_distilled",
    "deit_base_distilled_patch16_384": "deit_b16_distilled_384",
}
_DEIT3 = {
    "deit3_small_patch16_224": "deit3_s16",
    "deit3_medium_patch16_224": "deit3_m16",
    "deit3_base_patch16_224": "deit3_b16",
    "deit3_large_patch16_224": "deit3_l16",
    "deit3_huge_patch14_224": "deit3_h14",
}
_DINOV2 = {
    "vit_small_patch14_dinov2": "dinov2_s14",
    "vit_base_patch14_dinov2": "dinov2_b14",
    "vit_large_patch14_dinov2": "dinov2_l14",
    "vit_small_patch14_reg4_dinov2": "dinov2_s14_registers",
    "vit_base_patch14_reg4_dinov2": "dinov2_b14_registers",
    "vit_large_patch14_reg4_dinov2": "dinov2_l14_registers",
}

ALIASES: dict[str, str] = {
    **with_tags(
        _VIT, "augreg_in1k", "augreg_in21k_ft_in1k", "augreg2_in21k_ft_in1k", "orig_in21k_ft_in1k"
    ),
    **with_tags(_DEIT, "fb_in1k"),
    **with_tags(_DEIT3, "fb_in1k", "fb_in22k_ft_in1k"),
    **with_tags(_DINOV2, "lvd142m"),
    # google-research/vision_transformer.
    "ViT-Ti_16": "vit_ti16",
    "ViT-S_16": "vit_s16",
    "ViT-S_32": "vit_s32",
    "ViT-B_16": "vit_b16",
    "ViT-B_32": "vit_b32",
    "ViT-L_16": "vit_l16",
    "ViT-L_32": "vit_l32",
    "ViT-H_14": "vit_h14",
    # Zhai et al. 2022 and big_vision; so that "vit-g-14" is not taken for open_clip's.
    "ViT-g/14": "vit_giant14",
    "ViT-G/14": "vit_gigantic14",
    "ViT-So400m/14": "vit_so400m14",
    # facebookresearch/dinov2 and transformers.
    "dinov2_vits14": "dinov2_s14",
    "dinov2_vitb14": "dinov2_b14",
    "dinov2_vitl14": "dinov2_l14",
    "dinov2_vits14_reg": "dinov2_s14_registers",
    "dinov2_vitb14_reg": "dinov2_b14_registers",
    "dinov2_vitl14_reg": "dinov2_l14_registers",
    "dinov2-small": "dinov2_s14",
    "dinov2-base": "dinov2_b14",
    "dinov2-large": "dinov2_l14",
    "dinov2-with-registers-small": "dinov2_s14_registers",
    "dinov2-with-registers-base": "dinov2_b14_registers",
    "dinov2-with-registers-large": "dinov2_l14_registers",
}
