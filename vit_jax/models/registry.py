"""One name -> architecture, preprocessing, tokenizer.

`MODELS` is the table. An entry is plain data, so that it can stand in a config, be changed there
key by key, and travel as JSON with the weights.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError, lookup, unknown
from vit_jax.models.clip import CLIP, CLIPConfig
from vit_jax.models.text import TextConfig
from vit_jax.models.vit import ViT, ViTConfig

# One row a family: the name in configs -> the class and the dataclass that describes it.
FAMILIES: dict[str, tuple[type, type]] = {
    "vit": (ViT, ViTConfig),
    "clip": (CLIP, CLIPConfig),
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes the model's input.

    Attributes:
        resize: "crop" (shortest edge to size, then centre crop), "squash" (to a square) or
            "pad" (longest edge to size, then pad with white).
        mean: subtracted from values in [0, 1], one a channel.
        std: divisor, one a channel.
    """

    resize: str = "crop"
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A registered model.

    Attributes:
        family: a key of `FAMILIES`.
        architecture: instance of the family's config dataclass.
        preprocess: picture to input.
        tokenizer: "trained" for one learned from the run's own captions, None for models without
            text.
    """

    family: str
    architecture: Any
    preprocess: Preprocess
    tokenizer: str | None = None


def _vit(width: int, depth: int, num_heads: int, patch_size: int, **changes: Any) -> ViTConfig:
    return ViTConfig(
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=4 * width,
        patch_size=patch_size,
        **changes,
    )


def _clip_vit(width: int, depth: int, patch_size: int, text_width: int, **changes: Any) -> Any:
    """OpenAI's ViT models: QuickGELU, epsilon 1e-5, no patch bias, heads of 64."""
    image = _vit(
        width,
        depth,
        width // 64,
        patch_size,
        activation="quick_gelu",
        norm_epsilon=1e-5,
        pre_norm=True,
        patch_bias=False,
        **changes,
    )
    text = TextConfig(width=text_width, num_heads=text_width // 64, mlp_dim=4 * text_width)
    return ModelSpec(
        family="clip",
        architecture=CLIPConfig(image=image, text=text, embed_dim=text_width),
        preprocess=Preprocess(mean=CLIP_MEAN, std=CLIP_STD),
        tokenizer="trained",
    )


def _classifier(config: ViTConfig) -> ModelSpec:
    return ModelSpec(
        family="vit",
        architecture=dataclasses.replace(config, num_classes=1000),
        preprocess=Preprocess(),
    )


_CLIP_EMOJI = ModelSpec(
    family="clip",
    architecture=CLIPConfig(
        image=_vit(
            128,
            6,
            2,
            4,
            image_size=32,
            pool="mean",
            position_init="sincos",
            # Half the patches are half the time of a step on a CPU.
            patch_dropout=0.5,
        ),
        text=TextConfig(
            vocab_size=1024,
            context_length=16,
            width=96,
            depth=2,
            num_heads=3,
            mlp_dim=384,
            activation="gelu",
        ),
        embed_dim=128,
    ),
    preprocess=Preprocess(resize="pad"),
    tokenizer="trained",
)

MODELS: dict[str, ModelSpec] = {
    "clip_vit_emoji": _CLIP_EMOJI,
    "vit_ti16": _classifier(_vit(192, 12, 3, 16)),
    "vit_s16": _classifier(_vit(384, 12, 6, 16)),
    "vit_b32": _classifier(_vit(768, 12, 12, 32)),
    "vit_b16": _classifier(_vit(768, 12, 12, 16)),
    "vit_l16": _classifier(_vit(1024, 24, 16, 16)),
    "vit_h14": _classifier(_vit(1280, 32, 16, 14)),
    "clip_vit_b32": _clip_vit(768, 12, 32, 512),
    "clip_vit_b16": _clip_vit(768, 12, 16, 512),
    "clip_vit_l14": _clip_vit(1024, 24, 14, 768),
    "clip_vit_l14_336": _clip_vit(1024, 24, 14, 768, image_size=336),
}


def list_models() -> list[str]:
    """Registered names, sorted."""
    return sorted(MODELS)


def model_spec(name: str) -> ModelSpec:
    """The registered model of that name; an unknown name is told the nearest one."""
    return lookup(MODELS, name, "model")


def build(
    family: str,
    architecture: Any,
    *,
    rngs: nnx.Rngs,
    dtype: str = "float32",
    scan: bool = True,
    remat: str = "none",
) -> Any:
    """Builds a model with fresh parameters.

    Args:
        family: a key of `FAMILIES`.
        architecture: the family's config dataclass, or a mapping of its fields.
        rngs: source of the parameters' keys.
        dtype: compute type, "float32" or "bfloat16"; parameters are float32.
        scan: whether blocks are scanned (one trace) or unrolled; the parameters are the same.
        remat: a key of `layers.REMAT_POLICIES`.

    Raises:
        UserError: unknown family, field or value.
    """
    module, config_class = lookup(FAMILIES, family, "model family")
    if isinstance(architecture, Mapping):
        architecture = parse(config_class, architecture)
    compute = lookup(DTYPES, dtype, "dtype")
    return module(architecture, rngs=rngs, dtype=compute, scan=scan, remat=remat)


def parse(config_class: type, fields: Mapping[str, Any], path: str = "model") -> Any:
    """Builds a (nested) config dataclass from a mapping; an unknown field is an error."""
    hints = typing.get_type_hints(config_class)
    values = {}
    for key, value in fields.items():
        if key not in hints:
            raise unknown(f"{path}.{key}", [f"{path}.{k}" for k in hints], "key")
        if dataclasses.is_dataclass(hints[key]):
            value = parse(typing.cast(type, hints[key]), value, f"{path}.{key}")
        elif not _matches(value, hints[key]):
            raise UserError(f"{path}.{key}={value!r}: expected {hints[key]}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)


def _matches(value: Any, hint: Any) -> bool:
    """Whether a plain value has the annotated type; an int is accepted for a float."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple | list)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
