"""Weights of MAE with encoder and decoder in the formats of other libraries.

An encoder without decoder, as it is published for fine-tuning, is a ViT of timm.
"""

from typing import ClassVar

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.layers.weights import stored_positions
from vit_jax.models.mae.model import MAEConfig
from vit_jax.models.vit.weights import timm as vit_timm
from vit_jax.models.vit.weights import transformers as vit_transformers
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import timm
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import linear, norm
from vit_jax.weights.transforms import LEADING_ONE


class OfficialMAE(Format):
    """Checkpoints of the original code (github.com/facebookresearch/mae)."""

    name = "mae"
    architectures = (MAEConfig,)
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has an encoder and a decoder."""
        return "decoder_embed.weight" in file and "patch_embed.proj.weight" in file

    def entries(self, architecture: MAEConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        return [
            *vit_timm.vit(architecture.image, path="image/"),
            *linear("decoder_embed", "decoder_embed"),
            Entry("mask_token", "mask_token", LEADING_ONE),
            *timm.blocks("decoder/blocks", "decoder_blocks", architecture.decoder_depth),
            *norm("decoder_norm", "decoder_norm"),
            *linear("decoder_head", "decoder_pred"),
        ]

    def constants(self, architecture: MAEConfig) -> dict[str, np.ndarray]:
        """Returns the fixed positions of encoder and decoder; see `Format.constants`."""
        table = _decoder_positions(architecture)
        return {**vit_timm.constants(architecture.image), "decoder_pos_embed": table}


class TransformersMAE(Format):
    """ViTMAEForPreTraining of Hugging Face's transformers."""

    name = layers.NAME
    architectures = (MAEConfig,)
    position_resize = "bicubic"

    PREFIX = "vit."
    # Defaults of the library. Published configs leave them out.
    DEFAULTS: ClassVar[layers.Settings] = {
        **layers.BASE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "decoder_hidden_size": 512,
        "decoder_num_hidden_layers": 8,
        "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 2048,
    }

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has an encoder and a decoder."""
        has_decoder = any(key.startswith("decoder.") for key in file)
        return has_decoder and layers.has_patch_embedding(file, (self.PREFIX,))

    def view(self, file: TensorFile, architecture: MAEConfig) -> TensorFile:
        """Returns the file under the names of published files; see `Format.view`."""
        del architecture
        return layers.published_names(file, layers.VIT, (self.PREFIX,), self.PREFIX)

    def entries(self, architecture: MAEConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        depth = architecture.decoder_depth
        return [
            *vit_transformers.tower(architecture.image, "image/", self.PREFIX),
            *linear("decoder_embed", "decoder.decoder_embed"),
            Entry("mask_token", "decoder.mask_token", LEADING_ONE),
            *layers.blocks("decoder/blocks", "decoder.decoder_layers", layers.VIT, depth),
            *norm("decoder_norm", "decoder.decoder_norm"),
            *linear("decoder_head", "decoder.decoder_pred"),
        ]

    def constants(self, architecture: MAEConfig) -> dict[str, np.ndarray]:
        """Returns the fixed positions of encoder and decoder; see `Format.constants`."""
        encoder = vit_transformers.constants(architecture.image, self.PREFIX)
        return {**encoder, "decoder.decoder_pos_embed": _decoder_positions(architecture)}

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> MAEConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        if config.get("model_type") != "vit_mae":
            raise UserError(
                f"config.json: expected model_type 'vit_mae'; found {config.get('model_type')!r}"
            )
        layers.check_settings(config)
        settings = {**self.DEFAULTS, **config}
        return MAEConfig(
            image=vit_transformers.vit_config(
                settings, position_init="fixed_sincos", weight_init="xavier"
            ),
            decoder_width=settings["decoder_hidden_size"],
            decoder_depth=settings["decoder_num_hidden_layers"],
            decoder_num_heads=settings["decoder_num_attention_heads"],
            decoder_mlp_dim=settings["decoder_intermediate_size"],
        )


def _decoder_positions(config: MAEConfig) -> np.ndarray:
    table = config.image.fixed_positions(config.image.grid, config.decoder_width)
    return stored_positions(table, config.image.num_special)


FORMATS: tuple[Format, ...] = (OfficialMAE(), TransformersMAE())
