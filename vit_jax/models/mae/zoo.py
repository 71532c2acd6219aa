"""Masked autoencoders (He et al. 2022, appendix A.1), and their encoders as ViTs."""

from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.mae.model import MAEConfig
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from vit_jax.models.vit.zoo import BASE, HUGE, LARGE, Sizes, vit

# Width, depth, heads, and patch size: He et al. 2022, appendix A.1.
_SIZES: dict[str, tuple[Sizes, int]] = {
    "b16": (BASE, 16),
    "l16": (LARGE, 16),
    "h14": (HUGE, 14),
}


def _spec(architecture: Any) -> ModelSpec:
    """Preprocessing of the authors' fine-tuning."""
    return ModelSpec(
        architecture=architecture,
        inputs=ImageInputs(crop_fraction=0.9, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


_ENCODERS = {
    name: vit(*sizes, position_init="fixed_sincos", weight_init="xavier")
    for name, sizes in _SIZES.items()
}

MODELS: dict[str, ModelSpec] = {
    # Encoder and decoder, for pre-training.
    **{f"mae_vit_{name}": _spec(MAEConfig(image=vit)) for name, vit in _ENCODERS.items()},
    # The encoder alone, for linear probes, fine-tuning and features.
    **{f"mae_vit_{name}_encoder": _spec(vit) for name, vit in _ENCODERS.items()},
}

ALIASES: dict[str, str] = {
    # facebookresearch/mae.
    "mae_vit_base_patch16": "mae_vit_b16",
    "mae_vit_large_patch16": "mae_vit_l16",
    "mae_vit_huge_patch14": "mae_vit_h14",
    # transformers.
    "vit-mae-base": "mae_vit_b16",
    "vit-mae-large": "mae_vit_l16",
    "vit-mae-huge": "mae_vit_h14",
    # timm publishes the encoders.
    "vit_base_patch16_224.mae": "mae_vit_b16_encoder",
    "vit_large_patch16_224.mae": "mae_vit_l16_encoder",
    "vit_huge_patch14_224.mae": "mae_vit_h14_encoder",
}
