"""OWL-ViT and OWLv2, and a small detector for the embedded emoji scenes."""

import dataclasses
from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.clip import zoo as clip
from vit_jax.models.owl.model import OwlConfig
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD, ModelSpec


def _towers(name: str, image_size: int) -> dict[str, Any]:
    """Towers of OpenAI's CLIP for larger images and for texts of 16 tokens."""
    source = clip.MODELS[name].architecture
    return {
        "image": dataclasses.replace(
            source.image, image_size=image_size, position_resize="bicubic"
        ),
        "text": dataclasses.replace(source.text, context_length=16, position_resize="cut"),
        "embed_dim": source.embed_dim,
    }


def _owl(name: str, image_size: int) -> ModelSpec:
    """OWL-ViT (Minderer et al. 2022)."""
    return ModelSpec(
        architecture=OwlConfig(**_towers(name, image_size)),
        inputs=ImageInputs(resize="squash", mean=CLIP_MEAN, std=CLIP_STD),
        tokenizer="clip",
    )


def _owl2(name: str, image_size: int) -> ModelSpec:
    """OWLv2 (Minderer et al. 2023)."""
    return ModelSpec(
        architecture=OwlConfig(**_towers(name, image_size), objectness=True),
        inputs=ImageInputs(resize="corner", interpolation="bilinear", mean=CLIP_MEAN, std=CLIP_STD),
        tokenizer="clip",
    )


def _owl_emoji() -> ModelSpec:
    """OWLv2's heads on the towers of clip_vit_emoji, which have no class token, at 128 px."""
    source = clip.MODELS["clip_vit_emoji"].architecture
    return ModelSpec(
        architecture=OwlConfig(
            image=dataclasses.replace(source.image, image_size=128, patch_dropout=0.0),
            text=source.text,
            embed_dim=source.embed_dim,
            objectness=True,
        ),
        inputs=ImageInputs(resize="squash"),
        tokenizer="trained",
    )


MODELS: dict[str, ModelSpec] = {
    # This project, for the scenes of the data set that it contains.
    "owl_emoji": _owl_emoji(),
    # Minderer et al. 2022.
    "owlvit_base_patch32": _owl("clip_vit_b32", 768),
    "owlvit_base_patch16": _owl("clip_vit_b16", 768),
    "owlvit_large_patch14": _owl("clip_vit_l14", 840),
    # Minderer et al. 2023.
    "owlv2_base_patch16": _owl2("clip_vit_b16", 960),
    "owlv2_large_patch14": _owl2("clip_vit_l14", 1008),
}

# Weights of one architecture and preprocessing: self-trained, fine-tuned, and their average.
ALIASES: dict[str, str] = {
    f"{name}_{tag}": name
    for name in ("owlv2_base_patch16", "owlv2_large_patch14")
    for tag in ("finetuned", "ensemble")
}
