"""Swin Transformers (Liu et al. 2021)."""

from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.names import with_tags
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from vit_jax.models.swin.model import SwinConfig

SMALL_DEPTHS = (2, 2, 18, 2)
TINY_HEADS, BASE_HEADS, LARGE_HEADS = (3, 6, 12, 24), (4, 8, 16, 32), (6, 12, 24, 48)
AT_384: dict[str, Any] = {"image_size": 384, "window_size": 12}
# Fields of the backbone of a detector. The size is that of the longest side.
BACKBONE: dict[str, Any] = {
    "image_size": 1333,
    "fixed_windows": True,
    "final_norm": False,
    "position_resize": "bicubic",
}


def _swin(width: int, num_heads: tuple[int, ...], **changes: Any) -> ModelSpec:
    """ImageNet-1k classifier with the preprocessing of the original code."""
    crop_fraction = 1.0 if changes.get("image_size", 224) > 224 else 0.9
    return ModelSpec(
        architecture=SwinConfig(width=width, num_heads=num_heads, num_classes=1000, **changes),
        inputs=ImageInputs(crop_fraction=crop_fraction, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


# Liu et al. 2021, section 3.3; those of 384 px: table 1.
MODELS: dict[str, ModelSpec] = {
    "swin_t": _swin(96, TINY_HEADS),
    "swin_s": _swin(96, TINY_HEADS, depths=SMALL_DEPTHS),
    "swin_b": _swin(128, BASE_HEADS, depths=SMALL_DEPTHS),
    "swin_b_384": _swin(128, BASE_HEADS, depths=SMALL_DEPTHS, **AT_384),
    "swin_l": _swin(192, LARGE_HEADS, depths=SMALL_DEPTHS),
    "swin_l_384": _swin(192, LARGE_HEADS, depths=SMALL_DEPTHS, **AT_384),
}

# Names of timm, of the original code, and in another spelling of transformers
# (microsoft/swin-tiny-patch4-window7-224).
ALIASES: dict[str, str] = with_tags(
    {
        "swin_tiny_patch4_window7_224": "swin_t",
        "swin_small_patch4_window7_224": "swin_s",
        "swin_base_patch4_window7_224": "swin_b",
        "swin_base_patch4_window12_384": "swin_b_384",
        "swin_large_patch4_window7_224": "swin_l",
        "swin_large_patch4_window12_384": "swin_l_384",
    },
    "ms_in1k",
    "ms_in22k_ft_in1k",
)
