"""DINOv2's backbones with the heads of its pre-training (Oquab et al. 2024, tables 16 and 17).

The heads' sizes are those of the authors' configs: `ssl_default_config` for S and B, which they
distilled from a larger model, and `train/vitl14` for L.
"""

from vit_jax.inputs import ImageInputs
from vit_jax.models.dino.model import DINOConfig
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.zoo import BASE, LARGE, SMALL, vit


def _spec(image: ViTConfig, **heads: int) -> ModelSpec:
    return ModelSpec(
        architecture=DINOConfig(image=image, **heads),
        inputs=ImageInputs(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


MODELS: dict[str, ModelSpec] = {
    "dinov2_s14_pretraining": _spec(vit(SMALL, 14, layer_scale=1e-5)),
    "dinov2_b14_pretraining": _spec(vit(BASE, 14, layer_scale=1e-5)),
    "dinov2_l14_pretraining": _spec(
        vit(LARGE, 14, layer_scale=1e-5),
        bottleneck=384,
        prototypes=131_072,
        patch_prototypes=131_072,
    ),
}

ALIASES: dict[str, str] = {}
