"""SAM (Kirillov et al. 2023)."""

from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.sam.encoder import SamEncoderConfig
from vit_jax.models.sam.model import SamConfig
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec


def _sam(**image: Any) -> ModelSpec:
    return ModelSpec(
        architecture=SamConfig(image=SamEncoderConfig(**image)),
        inputs=ImageInputs(
            resize="longest", interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
    )


MODELS: dict[str, ModelSpec] = {
    # Kirillov et al. 2023, appendix A.
    "sam_vit_b": _sam(),
    "sam_vit_l": _sam(width=1024, depth=24, num_heads=16, mlp_dim=4096),
    "sam_vit_h": _sam(width=1280, depth=32, num_heads=16, mlp_dim=5120),
}

# Names of transformers' folders, and of the authors' files.
ALIASES: dict[str, str] = {
    "sam_vit_base": "sam_vit_b",
    "sam_vit_large": "sam_vit_l",
    "sam_vit_huge": "sam_vit_h",
    "sam_vit_b_01ec64": "sam_vit_b",
    "sam_vit_l_0b3195": "sam_vit_l",
    "sam_vit_h_4b8939": "sam_vit_h",
}
