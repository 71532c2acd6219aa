"""CLIP as published by OpenAI (github.com/openai/CLIP) and as written by open_clip.

OpenAI's files are TorchScript archives in float16 that contain three settings beside the tensors.
The settings mark them: these models have QuickGELU. open_clip's files are state dicts. In some
versions they contain the causal mask.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.clip.weights.open_clip_config import clip_config
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.layers.weights import FitText, ResizePositions
from vit_jax.models.resnet.weights import stages
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.torch import (
    COUNTERS,
    attention_out,
    batch_counters,
    batch_norm,
    conv,
    layer_scales,
    linear,
    norm,
)
from vit_jax.weights.transforms import NO_LEADING_ONE

# Settings in OpenAI's archives.
SETTINGS = ("input_resolution", "context_length", "vocab_size")


class OpenAIClip(Format):
    """CLIP with a ViT or a ResNet as image tower."""

    name = "openai_clip"
    architectures = (CLIPConfig,)
    ignored = (*SETTINGS, "*attn_mask", COUNTERS)
    description = "open_clip_config.json"
    position_resize = "bicubic_antialias"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has both towers under the names of OpenAI."""
        return "visual.conv1.weight" in file and "token_embedding.weight" in file

    def entries(self, architecture: CLIPConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        entries = self._image(architecture.image) + _text_tower(architecture.text)
        if architecture.init_logit_bias is not None:
            entries.append(Entry("logit_bias", "logit_bias"))
        return entries

    def architecture(self, file: TensorFile, config: Mapping[str, Any] | None) -> CLIPConfig | None:
        """Returns the architecture described by the folder; see `Format.architecture`."""
        return None if config is None else self.settle(clip_config(config), file)

    def settle(self, architecture: CLIPConfig, file: TensorFile) -> CLIPConfig:
        """Sets QuickGELU for files of OpenAI; see `Format.settle`."""
        architecture = super().settle(architecture, file)
        if not any(name in file for name in SETTINGS):
            return architecture
        image, text = architecture.image, architecture.text
        if isinstance(image, ViTConfig):
            image = dataclasses.replace(image, activation="quick_gelu")
        text = dataclasses.replace(text, activation="quick_gelu")
        return dataclasses.replace(architecture, image=image, text=text)

    def constants(self, architecture: CLIPConfig) -> dict[str, np.ndarray]:
        """Returns the counters of batches; see `Format.constants`."""
        return batch_counters(self._image(architecture.image))

    def _image(self, config: Any) -> list[Entry]:
        if isinstance(config, ViTConfig):
            return _image_vit(config)
        if isinstance(config, CLIPResNetConfig):
            return _image_resnet(config)
        raise UserError(
            f"the format {self.name} holds CLIP with a ViT or a ResNet as image tower; found "
            f"{type(config).__name__}"
        )


def transformer(path: str, key: str, depth: int, *, layer_scale: bool = False) -> list[Entry]:
    """Returns the entries of residual attention blocks: torch's MultiheadAttention and an MLP.

    Args:
        path: path of the transformer in the model.
        key: name of the transformer in the file.
        depth: number of blocks.
        layer_scale: whether the blocks have LayerScale.
    """
    ours, theirs, layers = f"{path}/blocks", f"{key}.resblocks.{{i}}", range(depth)
    fused = ("in_proj_weight", "in_proj_bias")
    scales = layer_scales(ours, f"{theirs}.ls_{{n}}.gamma", layers)
    return (scales if layer_scale else []) + [
        *norm(f"{ours}/norm1", f"{theirs}.ln_1", layers),
        *linear(f"{ours}/attention/qkv", f"{theirs}.attn.", layers, suffixes=fused),
        *attention_out(f"{ours}/attention/out", f"{theirs}.attn.out_proj", layers),
        *norm(f"{ours}/norm2", f"{theirs}.ln_2", layers),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc", layers),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj", layers),
    ]


def _image_vit(config: ViTConfig) -> list[Entry]:
    """ViT image tower and its projection."""
    resize = ResizePositions(config.table_grid, 1, config.position_resize)
    return [
        # The projections multiply from the right, as in the model: no transpose.
        Entry("image_projection/kernel", "visual.proj"),
        *conv("image/patch_embed", "visual.conv1", bias=config.patch_bias),
        Entry("image/class_token", "visual.class_embedding", NO_LEADING_ONE),
        Entry("image/positions", "visual.positional_embedding", resize=resize),
        *norm("image/pre_norm", "visual.ln_pre"),
        *transformer(
            "image/transformer",
            "visual.transformer",
            config.depth,
            layer_scale=config.layer_scale > 0,
        ),
        *norm("image/norm", "visual.ln_post"),
    ]


def _image_resnet(config: CLIPResNetConfig) -> list[Entry]:
    """ResNet image tower, whose attention pooling ends in the shared embedding space."""
    resize = ResizePositions(config.grid, 1, config.position_resize)
    pool, key = "image/pool", "visual.attnpool"
    entries = [
        *stages("image/", "visual.", config.depths),
        Entry(f"{pool}/positions", f"{key}.positional_embedding", resize=resize),
        *linear(f"{pool}/query", f"{key}.q_proj"),
        *linear(f"{pool}/key", f"{key}.k_proj"),
        *linear(f"{pool}/value", f"{key}.v_proj"),
        *attention_out(f"{pool}/out", f"{key}.c_proj"),
    ]
    for i in (1, 2, 3):
        entries += conv(f"image/stem_conv{i}", f"visual.conv{i}", bias=False)
        entries += batch_norm(f"image/stem_norm{i}", f"visual.bn{i}")
    return entries


def _text_tower(text: TextConfig) -> list[Entry]:
    """Text tower, its projection and the temperature."""
    return [
        Entry("text/token_embed/embedding", "token_embedding.weight"),
        Entry("text/positions", "positional_embedding", resize=FitText(text.position_resize)),
        *transformer("text/transformer", "transformer", text.depth),
        *norm("text/norm", "ln_final"),
        Entry("text_projection/kernel", "text_projection"),
        Entry("logit_scale", "logit_scale"),
    ]
