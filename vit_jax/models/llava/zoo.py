"""LLaVA 1.5 by the size of its language model."""

from vit_jax.inputs import ImageInputs
from vit_jax.models.clip import zoo as clip
from vit_jax.models.llava.model import LlavaConfig
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD, ModelSpec


def _llava(width: int) -> ModelSpec:
    """LLaVA 1.5 (Liu et al. 2024, section 3.2), cropped as by the processor of transformers."""
    return ModelSpec(
        architecture=LlavaConfig(
            image=clip.MODELS["clip_vit_l14_336"].architecture.image, width=width
        ),
        inputs=ImageInputs(mean=CLIP_MEAN, std=CLIP_STD),
    )


MODELS: dict[str, ModelSpec] = {
    "llava_1_5_7b": _llava(4096),
    "llava_1_5_13b": _llava(5120),
}

ALIASES: dict[str, str] = {
    "llava-v1.5-7b": "llava_1_5_7b",
    "llava-v1.5-13b": "llava_1_5_13b",
}
