"""CoCa as open_clip has published it (its class `CoCa`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.clip.weights.open_clip_config import coca_fields
from vit_jax.models.clip.weights.openai import transformer
from vit_jax.models.coca.model import CoCaConfig
from vit_jax.models.layers.weights import ResizePositions
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm
from vit_jax.weights.transforms import FLAT, LINEAR, NO_LEADING_ONE, concatenate

_PARTS = ("query", "key", "value")


class OpenCLIPCoCa(Format):
    """Towers, pooling queries and decoder."""

    name = "coca_open_clip"
    architectures = (CoCaConfig,)
    ignored = ("*attn_mask",)
    description = "open_clip_config.json"
    position_resize = "bicubic_antialias"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has pooling queries and a decoder under the names of open_clip."""
        names = ("visual.attn_pool.query", "text_decoder.cross_attn.0.ln_1_kv.weight")
        return all(name in file for name in names)

    def entries(self, architecture: CoCaConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config = architecture
        if config.text_projection_bias or not config.decoder.interleaved:
            raise UserError(
                f"the format {self.name} holds models with text_projection_bias=False and "
                f"decoder.interleaved=True; found {config.text_projection_bias}, "
                f"{config.decoder.interleaved}"
            )
        return [
            *_image(config.image, fused=config.image.width == config.embed_dim),
            Entry("image_projection/kernel", "visual.proj"),
            Entry("text/token_embed/embedding", "text.token_embedding.weight"),
            Entry("text/class_token", "text.cls_emb", NO_LEADING_ONE),
            Entry("text/positions", "text.positional_embedding"),
            *_blocks("text/blocks/blocks", "text.transformer.resblocks.{i}", config.text.depth),
            *norm("text/norm", "text.ln_final"),
            Entry("text_projection/kernel", "text.text_projection"),
            *_decoder("decoder/blocks/blocks", "text_decoder", config.decoder.depth),
            *norm("decoder/norm", "text_decoder.ln_final"),
            Entry("decoder/head/kernel", "text_decoder.text_projection"),
            Entry("logit_scale", "logit_scale"),
        ]

    def architecture(self, file: TensorFile, config: Mapping[str, Any] | None) -> CoCaConfig | None:
        """Returns the architecture described by the folder; see `Format.architecture`."""
        del file
        return None if config is None else CoCaConfig(**coca_fields(config))


def _image(config: ViTConfig, *, fused: bool) -> list[Entry]:
    """Image tower, and its queries."""
    resize = ResizePositions(config.table_grid, 1, config.position_resize)
    pool, key = "image/pooler", "visual.attn_pool"
    return [
        *conv("image/patch_embed", "visual.conv1", bias=config.patch_bias),
        Entry("image/class_token", "visual.class_embedding", NO_LEADING_ONE),
        Entry("image/positions", "visual.positional_embedding", resize=resize),
        *norm("image/pre_norm", "visual.ln_pre"),
        *transformer("image/transformer", "visual.transformer", config.depth),
        Entry("image/queries", f"{key}.query"),
        *norm("image/query_norm", f"{key}.ln_q"),
        *norm("image/key_norm", f"{key}.ln_k"),
        *_attention(pool, f"{key}.attn", None, fused=fused),
        *norm("image/pooled_norm", "visual.ln_post"),
    ]


def _attention(
    path: str, key: str, layers: Sequence[int] | None, *, fused: bool = True
) -> list[Entry]:
    """MultiheadAttention of torch, with separate kernels where queries and keys differ in width."""
    kernels, biases = ([f"{path}/{p}/{n}" for p in _PARTS] for n in ("kernel", "bias"))
    entries = [
        Entry(tuple(biases), f"{key}.in_proj_bias", concatenate(FLAT), layers),
        *attention_out(f"{path}/out", f"{key}.out_proj", layers),
    ]
    if fused:
        return [
            *entries,
            Entry(tuple(kernels), f"{key}.in_proj_weight", concatenate(LINEAR), layers),
        ]
    names = (f"{key}.{part[0]}_proj_weight" for part in _PARTS)
    return entries + [Entry(k, n, LINEAR, layers) for k, n in zip(kernels, names, strict=True)]


def _mlp(path: str, key: str, layers: Sequence[int]) -> list[Entry]:
    return [
        *linear(f"{path}/fc1", f"{key}.mlp.c_fc", layers),
        *linear(f"{path}/fc2", f"{key}.mlp.c_proj", layers),
    ]


def _blocks(path: str, key: str, depth: int) -> list[Entry]:
    """Blocks without patches."""
    layers = range(depth)
    return [
        *norm(f"{path}/norm1", f"{key}.ln_1", layers),
        *_attention(f"{path}/attention", f"{key}.attn", layers),
        *norm(f"{path}/norm3", f"{key}.ln_2", layers),
        *_mlp(f"{path}/mlp", key, layers),
    ]


def _decoder(path: str, key: str, depth: int) -> list[Entry]:
    """Blocks that the file has as two lists, of self-attention and of attention to the patches."""
    layers, own, cross = range(depth), f"{key}.resblocks.{{i}}", f"{key}.cross_attn.{{i}}"
    return [
        *norm(f"{path}/norm1", f"{own}.ln_1", layers),
        *_attention(f"{path}/attention", f"{own}.attn", layers),
        *norm(f"{path}/own_norm", f"{own}.ln_2", layers),
        *_mlp(f"{path}/own_mlp", own, layers),
        *norm(f"{path}/norm2", f"{cross}.ln_1", layers),
        *norm(f"{path}/memory_norm", f"{cross}.ln_1_kv", layers),
        *_attention(f"{path}/cross_attention", f"{cross}.attn", layers),
        *norm(f"{path}/norm3", f"{cross}.ln_2", layers),
        *_mlp(f"{path}/mlp", cross, layers),
    ]


FORMATS: tuple[Format, ...] = (OpenCLIPCoCa(),)
