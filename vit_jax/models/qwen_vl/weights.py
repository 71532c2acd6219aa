"""Qwen-VL as published by its authors, with the names of the code beside their weights."""

from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.clip.weights.openai import transformer
from vit_jax.models.qwen_vl.model import POSITION_RULE, QwenVLConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm
from vit_jax.weights.transforms import FLAT, LINEAR, Shape, concatenate, one_to_one

PREFIX = "transformer.visual."
_HEAD_DIM = 128  # of the resampler, in the authors' code


def _split_heads(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(..., heads * 3 * hd) to (..., 3, heads, hd): each head has its own q, k and v."""
    *_, parts, heads, head_dim = shape
    return np.swapaxes(x.reshape(*x.shape[:-1], heads, parts, head_dim), -3, -2)


def _join_heads(x: np.ndarray) -> np.ndarray:
    """The inverse of `_split_heads`."""
    return np.swapaxes(x, -3, -2).reshape(*x.shape[:-3], -1)


INTERLEAVED = one_to_one(lambda x, shape: _split_heads(x.T, shape), lambda x: _join_heads(x).T)
INTERLEAVED_BIAS = one_to_one(_split_heads, _join_heads)


class AuthorsQwenVL(Format):
    """The tower and the resampler. Tensors of the language model stay unread."""

    name = "qwen_vl"
    architectures = (QwenVLConfig,)
    unrelated = ("transformer.wte.*", "transformer.h.*", "transformer.ln_f.*", "lm_head.*")

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the queries of the resampler under the authors' name."""
        return f"{PREFIX}attn_pool.query" in file

    def entries(self, architecture: QwenVLConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config, pool, key = architecture.image, "resampler", f"{PREFIX}attn_pool"
        attention = [f"{pool}/attention/{name}" for name in ("query", "key", "value")]
        kernels, biases = (tuple(f"{p}/{x}" for p in attention) for x in ("kernel", "bias"))
        return [
            *conv("image/patch_embed", f"{PREFIX}conv1", bias=False),
            Entry("image/positions", f"{PREFIX}positional_embedding"),
            *norm("image/pre_norm", f"{PREFIX}ln_pre"),
            *_blocks("image/transformer", f"{PREFIX}transformer", config.depth),
            Entry(f"{pool}/query", f"{key}.query"),
            Entry(f"{pool}/positions", f"{key}.pos_embed"),
            *linear(f"{pool}/projection", f"{key}.kv_proj", bias=False),
            *norm(f"{pool}/query_norm", f"{key}.ln_q"),
            *norm(f"{pool}/norm", f"{key}.ln_kv"),
            Entry(kernels, f"{key}.attn.in_proj_weight", concatenate(LINEAR)),
            Entry(biases, f"{key}.attn.in_proj_bias", concatenate(FLAT)),
            *attention_out(f"{pool}/attention/out", f"{key}.attn.out_proj"),
            *norm("norm", f"{PREFIX}ln_post"),
            Entry("projection/kernel", f"{PREFIX}proj"),  # multiplies from the right
        ]

    def architecture(self, file: TensorFile, config: Any) -> QwenVLConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        if config is None:
            return None
        settings = config.get("visual")
        names = ("image_size", "patch_size", "width", "layers", "heads", "mlp_ratio", "output_dim")
        if not isinstance(settings, dict) or not all(name in settings for name in names):
            raise UserError(
                f"config.json: expected {', '.join(names)} under 'visual'; found {settings!r}"
            )
        positions = file.shape(f"{PREFIX}positional_embedding")[0]
        return QwenVLConfig(
            image=ViTConfig(
                image_size=settings["image_size"],
                patch_size=settings["patch_size"],
                width=settings["width"],
                depth=settings["layers"],
                num_heads=settings["heads"],
                mlp_dim=int(settings["width"] * settings["mlp_ratio"]),
                class_token=False,
                pool="none",
                position_grid=(round(positions**0.5),) * 2,
                position_resize=POSITION_RULE,
                pre_norm=True,
                patch_bias=False,
            ),
            width=settings["output_dim"],
            num_heads=max(1, settings["output_dim"] // _HEAD_DIM),
            num_queries=file.shape(f"{PREFIX}attn_pool.query")[0],
        )


FORMATS: tuple[Format, ...] = (AuthorsQwenVL(),)


def _blocks(path: str, key: str, depth: int) -> list[Entry]:
    """Blocks as OpenAI's, except that query, key and value are interleaved by head."""
    ours, theirs, layers = f"{path}/blocks/attention/qkv", f"{key}.resblocks.{{i}}", range(depth)
    others = [entry for entry in transformer(path, key, depth) if ours not in entry.paths[0]]
    return [
        *others,
        Entry(f"{ours}/kernel", f"{theirs}.attn.in_proj.weight", INTERLEAVED, layers),
        Entry(f"{ours}/bias", f"{theirs}.attn.in_proj.bias", INTERLEAVED_BIAS, layers),
    ]
