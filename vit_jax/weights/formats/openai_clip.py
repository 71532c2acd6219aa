"""CLIP as OpenAI published it (github.com/openai/CLIP) and as open_clip writes it.

OpenAI's files are TorchScript archives in float16 with three settings among the tensors;
open_clip's are state dicts, in some versions with the causal mask among them.
"""

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip_resnet.model import REDUCTION, CLIPResNetConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.formats.resnet_layers import COUNTERS, batch_norm, counters, stages
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm
from vit_jax.weights.mapping import Entry, ResizePositions
from vit_jax.weights.transforms import NO_LEADING_ONE


def transformer(path: str, key: str, depth: int) -> list[Entry]:
    """Residual attention blocks: torch's MultiheadAttention and an MLP.

    Args:
        path: of our `Transformer`.
        key: of theirs, without `.resblocks`.
        depth: number of blocks.
    """
    ours, theirs, layers = f"{path}/blocks", f"{key}.resblocks.{{i}}", range(depth)
    fused = ("in_proj_weight", "in_proj_bias")
    return [
        *norm(f"{ours}/norm1", f"{theirs}.ln_1", layers),
        *linear(f"{ours}/attention/qkv", f"{theirs}.attn.", layers, suffixes=fused),
        *attention_out(f"{ours}/attention/out", f"{theirs}.attn.out_proj", layers),
        *norm(f"{ours}/norm2", f"{theirs}.ln_2", layers),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc", layers),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj", layers),
    ]


def image_vit(config: ViTConfig) -> list[Entry]:
    """The ViT image tower, without its projection."""
    resize = ResizePositions(config.grid, num_prefix=1)
    return [
        # Both libraries' projections multiply from the right, as ours do: no transpose.
        Entry("image_projection/kernel", "visual.proj"),
        *conv("image/patch_embed", "visual.conv1", bias=config.patch_bias),
        Entry("image/class_token", "visual.class_embedding", NO_LEADING_ONE),
        Entry("image/positions", "visual.positional_embedding", resize=resize),
        *norm("image/pre_norm", "visual.ln_pre"),
        *transformer("image/transformer", "visual.transformer", config.depth),
        *norm("image/norm", "visual.ln_post"),
    ]


def image_resnet(config: CLIPResNetConfig) -> list[Entry]:
    """The convolutional image tower, whose attention pooling ends in the shared space."""
    resize = ResizePositions((config.image_size // REDUCTION,) * 2, num_prefix=1)
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


def text_tower(depth: int) -> list[Entry]:
    """The text tower with its projection, and the temperature."""
    return [
        Entry("text/token_embed/embedding", "token_embedding.weight"),
        Entry("text/positions", "positional_embedding"),
        *transformer("text/transformer", "transformer", depth),
        *norm("text/norm", "ln_final"),
        Entry("text_projection/kernel", "text_projection"),
        Entry("logit_scale", "logit_scale"),
    ]


class OpenAIClip(Format):
    """ViT or ResNet image tower and text tower."""

    name = "openai_clip"
    families = ("clip",)
    ignored = ("input_resolution", "context_length", "vocab_size", "*attn_mask", COUNTERS)

    def matches(self, file: TensorFile) -> bool:
        return "visual.conv1.weight" in file and "token_embedding.weight" in file

    def entries(self, family: str, architecture: CLIPConfig) -> list[Entry]:
        entries = self._image(architecture.image) + text_tower(architecture.text.depth)
        if architecture.init_logit_bias is not None:
            entries.append(Entry("logit_bias", "logit_bias"))
        return entries

    def constants(self, family: str, architecture: CLIPConfig) -> dict[str, np.ndarray]:
        return counters(self._image(architecture.image))

    def _image(self, config: object) -> list[Entry]:
        if isinstance(config, ViTConfig):
            return image_vit(config)
        if isinstance(config, CLIPResNetConfig):
            return image_resnet(config)
        raise UserError(
            f"the format {self.name} holds ViT and ResNet image towers; found "
            f"{type(config).__name__}"
        )
