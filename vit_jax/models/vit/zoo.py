"""Vision Transformers: ViT, DeiT, DeiT III, DINOv2 and DINOv3."""

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
# g of DINOv2: Oquab et al. 2024, table 17. H+ of DINOv3: Siméoni et al. 2025, table 3.
DINOV2_GIANT, DINOV3_HUGE = (1536, 40, 24), (1280, 32, 20)


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


def _dinov2_classifier(config: ViTConfig) -> ModelSpec:
    """DINOv2 with the linear classifier of transformers, on class token and mean of the patches."""
    config = dataclasses.replace(config, pool="class_mean")
    return _classifier(config, crop_fraction=224 / 256, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _dinov3(sizes: Sizes, *, gated: bool = False, **changes: Any) -> ModelSpec:
    """DINOv3 (Siméoni et al. 2025) without a head; without biases it is timm's."""
    config = vit(
        sizes,
        16,
        activation="silu" if gated else "gelu",
        gated_mlp=gated,
        norm_epsilon=1e-5,
        num_registers=4,
        position_init="rotary",
        rotary_rescale=2.0,
        layer_scale=1e-5,
        **{"qkv_bias": "qv", **changes},
    )
    inputs = ImageInputs(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if config.qkv_bias != "none":  # that of timm
        inputs = dataclasses.replace(inputs, resize="squash", interpolation="bilinear")
    return ModelSpec(architecture=config, inputs=inputs)


# Sizes, and fields that are not those of most.
_SWIGLU = {"mlp_dim": 4096, "gated_mlp": True, "activation": "silu"}
_DINOV2_SIZES: dict[str, tuple[Sizes, dict[str, Any]]] = {
    "s14": (SMALL, {}),
    "b14": (BASE, {}),
    "l14": (LARGE, {}),
    "g14": (DINOV2_GIANT, _SWIGLU),
}
_DINOV2_MODELS = {
    f"dinov2_{name}{suffix}": _dinov2(sizes, **changes, num_registers=registers)
    for suffix, registers in (("", 0), ("_registers", 4))
    for name, (sizes, changes) in _DINOV2_SIZES.items()
}
_DINOV3_SIZES: dict[str, tuple[Sizes, bool]] = {
    "s16": (SMALL, False),
    "s16plus": (SMALL, True),
    "b16": (BASE, False),
    "l16": (LARGE, False),
    "h16plus": (DINOV3_HUGE, True),
}

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
    # Oquab et al. 2024; with registers: Darcet et al. 2024.
    **_DINOV2_MODELS,
    **{
        f"{name}_classifier": _dinov2_classifier(spec.architecture)
        for name, spec in _DINOV2_MODELS.items()
    },
    # Siméoni et al. 2025, table 3.
    **{f"dinov3_{n}": _dinov3(sizes, gated=g) for n, (sizes, g) in _DINOV3_SIZES.items()},
    # The same in timm, which leaves out the biases of queries and values: they are zero.
    **{
        f"timm_dinov3_{n}": _dinov3(sizes, gated=g, qkv_bias="none", image_size=256)
        for n, (sizes, g) in _DINOV3_SIZES.items()
    },
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
    "vit_giant_patch14_dinov2": "dinov2_g14",
    "vit_small_patch14_reg4_dinov2": "dinov2_s14_registers",
    "vit_base_patch14_reg4_dinov2": "dinov2_b14_registers",
    "vit_large_patch14_reg4_dinov2": "dinov2_l14_registers",
    "vit_giant_patch14_reg4_dinov2": "dinov2_g14_registers",
}
# timm's sizes -> those of the registered names.
_DINOV3 = {
    "small": "s16",
    "small_plus": "s16plus",
    "base": "b16",
    "large": "l16",
    "huge_plus": "h16plus",
}
# Letters of the sizes in the authors' names, and the words for them in those of transformers.
_LETTERS = {"s": "small", "b": "base", "l": "large", "g": "giant"}

ALIASES: dict[str, str] = {
    **with_tags(
        _VIT, "augreg_in1k", "augreg_in21k_ft_in1k", "augreg2_in21k_ft_in1k", "orig_in21k_ft_in1k"
    ),
    **with_tags(_DEIT, "fb_in1k"),
    **with_tags(_DEIT3, "fb_in1k", "fb_in22k_ft_in1k"),
    **with_tags(_DINOV2, "lvd142m"),
    **with_tags(
        {f"vit_{t}_patch16_dinov3": f"timm_dinov3_{n}" for t, n in _DINOV3.items()},
        "lvd1689m",
        "sat493m",
    ),
    **with_tags(
        {f"vit_{t}_patch16_dinov3_qkvb": f"dinov3_{n}" for t, n in _DINOV3.items()},
        "lvd1689m",
        "sat493m",
    ),
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
    **{f"dinov2_vit{x}14": f"dinov2_{x}14" for x in _LETTERS},
    **{f"dinov2_vit{x}14_reg": f"dinov2_{x}14_registers" for x in _LETTERS},
    **{f"dinov2-{size}": f"dinov2_{x}14" for x, size in _LETTERS.items()},
    **{f"dinov2-with-registers-{size}": f"dinov2_{x}14_registers" for x, size in _LETTERS.items()},
    **{
        f"dinov2-{size}-imagenet1k-1-layer": f"dinov2_{x}14_classifier"
        for x, size in _LETTERS.items()
    },
    **{
        f"dinov2-with-registers-{size}-imagenet1k-1-layer": f"dinov2_{x}14_registers_classifier"
        for x, size in _LETTERS.items()
    },
    # facebookresearch/dinov3 and transformers.
    **{f"dinov3_vit{n}": f"dinov3_{n}" for n in _DINOV3_SIZES},
    **{
        f"dinov3-vit{n}-pretrain-{tag}": f"dinov3_{n}"
        for n in _DINOV3_SIZES
        for tag in ("lvd1689m", "sat493m")
    },
}
