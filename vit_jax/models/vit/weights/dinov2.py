"""DINOv2 as its authors published it (github.com/facebookresearch/dinov2)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights import timm
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.transforms import LEADING_ONE


class OfficialDINOv2(Format):
    """Backbones with or without registers, under names of timm.

    Registers and the layers of SwiGLU (giant) have names of their own.
    """

    name = "dinov2"
    architectures = (ViTConfig,)
    ignored = ("mask_token",)
    heads = timm.TimmViT.heads
    position_resize = "bicubic_offset"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has blocks and a mask token, and is no other model."""
        names = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "mask_token")
        # MAE, DINOv3, BEiT.
        others = ("decoder_embed.weight", "storage_tokens", "blocks.0.gamma_1")
        return all(name in file for name in names) and not any(name in file for name in others)

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`. The class token has a position."""
        entries = timm.vit(dataclasses.replace(architecture, num_registers=0))
        if architecture.gated_mlp:
            entries = [dataclasses.replace(e, keys=_gated(e.keys)) for e in entries]
        if architecture.num_registers:
            entries.append(Entry("registers", "register_tokens", LEADING_ONE))
        return entries

    def resize_rule(self, architecture: ViTConfig) -> str:
        """Returns the rule of the authors; see `Format.resize_rule`."""
        return "bicubic_antialias" if architecture.num_registers else self.position_resize

    def constants(self, architecture: ViTConfig) -> dict[str, np.ndarray]:
        """Returns the mask token of the pre-training; see `Format.constants`."""
        return {"mask_token": np.zeros((1, architecture.width), np.float32)}


def _gated(keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(k.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.") for k in keys)
