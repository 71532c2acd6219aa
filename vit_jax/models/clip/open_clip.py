"""CLIP at the sizes that open_clip adds, which MetaCLIP, DFN and DataComp train as well.

Names that end in `_quickgelu` have OpenAI's activation, the others the exact GELU.
"""

import dataclasses
from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD, ModelSpec
from vit_jax.models.vit.zoo import (
    BASE,
    GIGANTIC,
    GIGANTIC_MLP,
    HUGE,
    LARGE,
    MEDIUM,
    SMALL,
    Sizes,
    vit,
)

BASE_PLUS: Sizes = (896, 12, 14)
# Zhai et al. 2022 name the sizes of e; open_clip has heads of 112 features.
ENORMOUS: Sizes = (1792, 56, 16)


def text_tower(width: int, depth: int = 12, **changes: Any) -> TextConfig:
    """Builds a text tower with heads of 64 features (Radford et al. 2021, table 20).

    Args:
        width: number of features D.
        depth: number of blocks.
        **changes: other fields of `TextConfig`.
    """
    fields = {"activation": "gelu", "num_heads": width // 64, "mlp_dim": 4 * width, **changes}
    return TextConfig(width=width, depth=depth, **fields)


def clip_vit(
    sizes: Sizes, patch_size: int, text: TextConfig, embed_dim: int, **changes: Any
) -> CLIPConfig:
    """Builds a CLIP with a ViT, whose activation is that of the text tower.

    Class token, norm before the blocks, epsilon 1e-5, no bias in the patch embedding.

    Args:
        sizes: width, depth and heads of the image tower.
        patch_size: side of a patch, px.
        text: text tower.
        embed_dim: size of the shared space.
        **changes: other fields of the image tower.
    """
    image = vit(
        sizes,
        patch_size,
        activation=text.activation,
        norm_epsilon=1e-5,
        pre_norm=True,
        patch_bias=False,
        weight_init="clip",
        **changes,
    )
    return CLIPConfig(image=image, text=text, embed_dim=embed_dim)


def clip_spec(architecture: CLIPConfig, tokenizer: str = "clip", resize: str = "crop") -> ModelSpec:
    """Adds OpenAI's preprocessing and tokenizer.

    Args:
        architecture: dual encoder.
        tokenizer: spec of the tokenizer.
        resize: resize mode of the images.
    """
    inputs = ImageInputs(mean=CLIP_MEAN, std=CLIP_STD, resize=resize)
    return ModelSpec(architecture=architecture, inputs=inputs, tokenizer=tokenizer)


def _quick(config: CLIPConfig) -> CLIPConfig:
    towers = (config.image, config.text)
    image, text = (dataclasses.replace(t, activation="quick_gelu") for t in towers)
    return dataclasses.replace(config, image=image, text=text)


def _worldwide(config: CLIPConfig, vocab_size: int, end_id: int) -> ModelSpec:
    """MetaCLIP 2 (Chuang et al. 2025) and its kin: tokens of many languages."""
    text = dataclasses.replace(config.text, vocab_size=vocab_size, end_id=end_id)
    resize = "squash" if config.image.image_size == (378, 378) else "crop"
    return clip_spec(dataclasses.replace(config, text=text), "huggingface", resize)


_L14 = clip_vit(LARGE, 14, text_tower(768), 768)
_H14 = clip_vit(HUGE, 14, text_tower(1024, 24), 1024)
_H14_378 = clip_vit(HUGE, 14, text_tower(1024, 24), 1024, image_size=378)
_BIGG14 = clip_vit(GIGANTIC, 14, text_tower(1280, 32), 1280, mlp_dim=GIGANTIC_MLP)
_BIGG14_378 = dataclasses.replace(
    _BIGG14, image=dataclasses.replace(_BIGG14.image, image_size=(378, 378))
)
# Name without its start -> architecture. The sizes of the others are in `zoo`.
_ARCHITECTURES: dict[str, CLIPConfig] = {
    "b32_256": clip_vit(BASE, 32, text_tower(512), 512, image_size=256),
    "b32_plus_256": clip_vit(BASE_PLUS, 32, text_tower(640), 640, image_size=256),
    "b16_plus": clip_vit(BASE_PLUS, 16, text_tower(640), 640),
    "b16_plus_240": clip_vit(BASE_PLUS, 16, text_tower(640), 640, image_size=240),
    "l16": clip_vit(LARGE, 16, text_tower(768), 768),
    "l16_320": clip_vit(LARGE, 16, text_tower(768), 768, image_size=320),
    "l14_280": clip_vit(LARGE, 14, text_tower(768), 768, image_size=280),
    "l14_336": clip_vit(LARGE, 14, text_tower(768), 768, image_size=336),
    "h16": clip_vit(HUGE, 16, text_tower(1024, 24), 1024),
    "h14_quickgelu": _quick(_H14),
    "h14_378": _H14_378,
    "h14_378_quickgelu": _quick(_H14_378),
    "bigg14_quickgelu": _quick(_BIGG14),
    "e14": clip_vit(ENORMOUS, 14, text_tower(1280, 36), 1280, mlp_dim=15360),
    "m32": clip_vit(MEDIUM, 32, text_tower(512), 512),
    "m32_alt": clip_vit(MEDIUM, 32, text_tower(384), 384, layer_scale=1e-4),
    "m16": clip_vit(MEDIUM, 16, text_tower(512), 512),
    "m16_alt": clip_vit(MEDIUM, 16, text_tower(384), 384, layer_scale=1e-4),
    "s32": clip_vit(SMALL, 32, text_tower(384), 384),
    "s32_alt": clip_vit(SMALL, 32, text_tower(256, 10), 256),
    "s16": clip_vit(SMALL, 16, text_tower(384), 384),
    "s16_alt": clip_vit(SMALL, 16, text_tower(256, 10), 256),
}
# Rows of the table and end of text: mT5, XLM-V.
_MT5, _XLM_V = (250_100, 1), (901_629, 2)
_WORLDWIDE: dict[str, ModelSpec] = {
    "l14_worldwide": _worldwide(_L14, *_MT5),
    "l14_worldwide_quickgelu": _worldwide(_quick(_L14), *_MT5),
    "h14_worldwide": _worldwide(_H14, *_XLM_V),
    "h14_worldwide_quickgelu": _worldwide(_quick(_H14), *_XLM_V),
    "h14_worldwide_378": _worldwide(_H14_378, *_XLM_V),
    "bigg14_worldwide": _worldwide(_BIGG14, *_XLM_V),
    "bigg14_worldwide_378": _worldwide(_BIGG14_378, *_XLM_V),
}

MODELS: dict[str, ModelSpec] = {
    **{f"openclip_vit_{n}": clip_spec(config) for n, config in _ARCHITECTURES.items()},
    **{f"openclip_vit_{n}": spec for n, spec in _WORLDWIDE.items()},
    # Fang et al. 2024, "Data Filtering Networks": images are squashed.
    "dfn5b_vit_h14": clip_spec(_quick(_H14), resize="squash"),
    "dfn5b_vit_h14_378": clip_spec(_quick(_H14_378), resize="squash"),
}

_LETTERS = {"b": "B", "l": "L", "h": "H", "bigg": "bigG", "e": "e", "m": "M", "s": "S"}


def _name(ours: str) -> str:
    """Spelling of open_clip, as ViT-B-16-plus-240."""
    size, *rest = ours.split("_")
    letters, patch_size = size.rstrip("0123456789"), size[-2:]
    return "-".join(("ViT", _LETTERS[letters], patch_size, *rest))


ALIASES: dict[str, str] = {
    **{_name(n): f"openclip_vit_{n}" for n in (*_ARCHITECTURES, *_WORLDWIDE)},
    # MetaCLIP (Xu et al. 2024) and DFN on the Hugging Face hub.
    **{
        f"metaclip-{size}-{data}": model
        for size, model in {
            "b32": "clip_vit_b32",
            "b16": "clip_vit_b16",
            "l14": "clip_vit_l14",
            "h14": "openclip_vit_h14_quickgelu",
        }.items()
        for data in ("400m", "fullcc2.5b")
        if (size, data) != ("h14", "400m")
    },
    "metaclip-2-worldwide-huge-quickgelu": "openclip_vit_h14_worldwide_quickgelu",
    "metaclip-2-worldwide-huge-378": "openclip_vit_h14_worldwide_378",
    "metaclip-2-worldwide-giant": "openclip_vit_bigg14_worldwide",
    "metaclip-2-worldwide-giant-378": "openclip_vit_bigg14_worldwide_378",
    "DFN2B-CLIP-ViT-B-16": "clip_vit_b16",
    "DFN2B-CLIP-ViT-L-14": "clip_vit_l14",
    "DFN2B-CLIP-ViT-L-14-39B": "openclip_vit_l14",
    "DFN5B-CLIP-ViT-H-14": "dfn5b_vit_h14",
    "DFN5B-CLIP-ViT-H-14-378": "dfn5b_vit_h14_378",
}
