"""MAE's original checkpoints with encoder and decoder (github.com/facebookresearch/mae).

An encoder alone, as it is published for fine-tuning, has timm's names: see `timm`.
"""

import numpy as np

from vit_jax.models.mae.model import MAEConfig
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.formats import timm_vit
from vit_jax.weights.layers.torch import fixed_positions, linear, norm
from vit_jax.weights.mapping import Entry
from vit_jax.weights.transforms import LEADING_ONE


class OfficialMAE(Format):
    """The pre-training model."""

    name = "mae"
    families = ("mae",)

    def matches(self, file: TensorFile) -> bool:
        return "decoder_embed.weight" in file and "patch_embed.proj.weight" in file

    def entries(self, family: str, architecture: MAEConfig) -> list[Entry]:
        decoder, depth = architecture.decoder, architecture.decoder_depth
        return [
            *timm_vit.vit(architecture.image, path="image/"),
            *linear("decoder_embed", "decoder_embed"),
            Entry("mask_token", "mask_token", LEADING_ONE),
            *timm_vit.blocks(decoder, depth, "decoder/blocks", "decoder_blocks"),
            *norm("decoder_norm", "decoder_norm"),
            *linear("decoder_head", "decoder_pred"),
        ]

    def constants(self, family: str, architecture: MAEConfig) -> dict[str, np.ndarray]:
        image, width = architecture.image, architecture.decoder_width
        table = fixed_positions(image, width)
        return {**timm_vit.constants(image), "decoder_pos_embed": table}
