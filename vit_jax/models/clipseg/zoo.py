"""CLIPSeg (Lüddecke and Ecker 2022), and a small segmenter for the embedded emoji scenes."""

import dataclasses
from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.clip import zoo as clip
from vit_jax.models.clipseg.model import CLIPSegConfig
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

_IMAGE_SIZE = 352  # section 4 of the paper


def _clipseg(**decoder: Any) -> ModelSpec:
    """On OpenAI's ViT-B/16. Mean and standard deviation are those of the authors' code."""
    source = clip.MODELS["clip_vit_b16"].architecture
    return ModelSpec(
        architecture=CLIPSegConfig(
            image=dataclasses.replace(
                source.image, image_size=_IMAGE_SIZE, position_resize="bicubic"
            ),
            text=source.text,
            embed_dim=source.embed_dim,
            **decoder,
        ),
        inputs=ImageInputs(
            resize="squash", interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
        tokenizer="clip",
    )


def _clipseg_emoji() -> ModelSpec:
    """On the towers of clip_vit_emoji, which have six blocks and no class token, at 128 px."""
    source = clip.MODELS["clip_vit_emoji"].architecture
    return ModelSpec(
        architecture=CLIPSegConfig(
            image=dataclasses.replace(source.image, image_size=128, patch_dropout=0.0),
            text=source.text,
            embed_dim=source.embed_dim,
            layers=(1, 3, 5),
            decoder_mlp_dim=256,
        ),
        inputs=ImageInputs(resize="squash"),
        tokenizer="trained",
    )


MODELS: dict[str, ModelSpec] = {
    # This project, for the scenes of the data set that it contains.
    "clipseg_emoji": _clipseg_emoji(),
    # The published weights, as transformers' conversion script configures them.
    "clipseg_rd16": _clipseg(reduced_width=16),
    "clipseg_rd64": _clipseg(),
    "clipseg_rd64_refined": _clipseg(refined=True),
}

ALIASES: dict[str, str] = {}
