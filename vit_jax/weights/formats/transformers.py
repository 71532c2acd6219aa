"""Hugging Face's transformers: CLIP, SigLIP, ViT, DeiT, DINOv2, MAE, Swin.

The names are those of files, as on their Hub. Since transformers 5 modules have other names in
memory, which `save_pretrained` translates back; a state dict with those is understood too.
"""

import re
from typing import Any

import numpy as np

from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.formats import transformers_clip
from vit_jax.weights.formats.transformers_config import parse_config
from vit_jax.weights.formats.transformers_swin import swin_entries, swin_prefix
from vit_jax.weights.formats.transformers_vit import (
    MAE_PREFIX,
    mae_constants,
    mae_entries,
    vit_constants,
    vit_entries,
    vit_prefix,
)
from vit_jax.weights.layers.transformers import DINOV2, MODULES, SWIN, VIT, BlockNames
from vit_jax.weights.mapping import Entry

# Before the names of a tower, in models that have more than a tower.
PREFIXES = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.", "swin.")
# Microbatches of a tower.
TOWER = ("embeddings.", "encoder.", "layernorm.")


class Transformers(Format):
    """Files of transformers."""

    name = "transformers"
    families = ("clip", "vit", "mae", "swin")
    ignored = (
        "*.position_ids",
        "*pooler.dense.*",  # of ViTModel and DeiTModel; classifiers read the token itself
        "*embeddings.mask_token",  # of DINOv2's pre-training
        "*.relative_position_index",
    )

    def matches(self, file: TensorFile) -> bool:
        if "vision_model.embeddings.patch_embedding.weight" in file:
            return "text_model.embeddings.token_embedding.weight" in file
        key = "embeddings.patch_embeddings.projection.weight"
        return any(f"{prefix}{key}" in file for prefix in ("", *PREFIXES))

    def entries(self, family: str, architecture: Any) -> list[Entry]:
        if family == "clip":
            return transformers_clip.entries(architecture)
        if family == "mae":
            return mae_entries(architecture)
        return swin_entries(architecture) if family == "swin" else vit_entries(architecture)

    def constants(self, family: str, architecture: Any) -> dict[str, np.ndarray]:
        if family == "mae":
            return mae_constants(architecture)
        return vit_constants(architecture) if family == "vit" else {}

    def view(self, file: TensorFile, family: str, architecture: Any) -> TensorFile:
        """With the prefix that the model wants, and with the names of files."""
        if family == "clip":
            return file
        if family == "mae":
            prefix, names = MAE_PREFIX, VIT
        elif family == "swin":
            prefix, names = swin_prefix(architecture), SWIN
        else:
            prefix, names = vit_prefix(architecture), DINOV2 if architecture.layer_scale else VIT
        return file.renamed(lambda key: _named(key, prefix, names))

    def architecture(
        self, file: TensorFile, config: dict[str, Any] | None
    ) -> tuple[str, Any] | None:
        """From `config.json`, and from the head's shape."""
        return None if config is None else parse_config(file, config)


def _named(key: str, prefix: str, names: BlockNames) -> str:
    """A name as in files, with this prefix."""
    key = re.sub(r"(?<!encoder\.)\blayers\.", "encoder.layer.", key)
    # What `save_pretrained` of transformers 5 makes of the decoder's names.
    key = key.replace("decoder_encoder.layer.", "decoder_layers.")
    ours = (*names.qkv, names.out, names.fc1, names.fc2)
    theirs = (*MODULES.qkv, MODULES.out, MODULES.fc1, MODULES.fc2)
    for in_memory, in_files in zip(theirs, ours, strict=True):
        key = key.replace(f".{in_memory}.", f".{in_files}.")
    key = key.replace("attention.relative_position_bias.", "attention.self.")
    for found in PREFIXES:
        key = key.removeprefix(found)
    return f"{prefix}{key}" if key.startswith(TOWER) else key
