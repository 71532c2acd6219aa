"""Masked autoencoders (He et al. 2022, appendix A.1)."""

from vit_jax.inputs import ImageInputs
from vit_jax.models.mae.model import MAEConfig
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from vit_jax.models.vit.zoo import BASE, HUGE, LARGE, Sizes, vit


def _mae(sizes: Sizes, patch_size: int) -> ModelSpec:
    image = vit(sizes, patch_size, position_init="fixed_sincos", weight_init="xavier")
    return ModelSpec(
        architecture=MAEConfig(image=image),
        inputs=ImageInputs(crop_fraction=0.9, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


MODELS: dict[str, ModelSpec] = {
    "mae_vit_b16": _mae(BASE, 16),
    "mae_vit_l16": _mae(LARGE, 16),
    "mae_vit_h14": _mae(HUGE, 14),
}

ALIASES: dict[str, str] = {}
