"""AIMv2 (Fini et al. 2024, "Multimodal Autoregressive Pre-training of Large Vision Encoders")."""

from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.names import with_tags
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD, ModelSpec
from vit_jax.models.vit.zoo import Sizes, vit

# Name -> its spelling in timm and in transformers, sizes, and units of the MLP.
_SIZES: dict[str, tuple[str, str, Sizes, int]] = {
    "l14": ("large", "large", (1024, 24, 8), 2816),
    "h14": ("huge", "huge", (1536, 24, 12), 4096),
    "1b14": ("1b", "1B", (2048, 24, 16), 5632),
    "3b14": ("3b", "3B", (3072, 24, 24), 8192),
}
_IMAGE_SIZES = (224, 336, 448)
# Blocks of image and text towers: RMSNorm, SwiGLU, no biases.
BLOCKS: dict[str, Any] = {
    "activation": "silu",
    "gated_mlp": True,
    "qkv_bias": "none",
    "use_bias": False,
    "norm": "rms",
    "norm_epsilon": 1e-5,
}


def _aimv2(sizes: Sizes, mlp_dim: int, **changes: Any) -> ModelSpec:
    """Pooled as in timm: the mean of the normalised patches."""
    architecture = vit(
        sizes,
        14,
        mlp_dim=mlp_dim,
        **BLOCKS,
        patch_norm=True,
        class_token=False,
        pool="mean",
        **changes,
    )
    return ModelSpec(architecture=architecture, inputs=ImageInputs(mean=CLIP_MEAN, std=CLIP_STD))


def _name(size: str, image_size: int) -> str:
    return f"aimv2_{size}" + (f"_{image_size}" if image_size != 224 else "")


MODELS: dict[str, ModelSpec] = {
    _name(size, image_size): _aimv2(sizes, mlp_dim, image_size=image_size)
    for size, (_, _, sizes, mlp_dim) in _SIZES.items()
    for image_size in _IMAGE_SIZES
}
# Trained at many resolutions, with fixed positions.
MODELS["aimv2_l14_native"] = _aimv2((1024, 24, 8), 2816, position_init="fixed_sincos")

_TIMM = {
    f"aimv2_{timm}_patch14_{image_size}": _name(size, image_size)
    for size, (timm, *_) in _SIZES.items()
    for image_size in _IMAGE_SIZES
}
ALIASES: dict[str, str] = {
    **with_tags(_TIMM, "apple_pt", "apple_pt_dist"),
    **{
        f"aimv2-{theirs}-patch14-{image_size}": _name(size, image_size)
        for size, (_, theirs, *_) in _SIZES.items()
        for image_size in _IMAGE_SIZES
    },
    "aimv2-large-patch14-224-distilled": "aimv2_l14",
    "aimv2-large-patch14-336-distilled": "aimv2_l14_336",
    "aimv2-large-patch14-native": "aimv2_l14_native",
}
