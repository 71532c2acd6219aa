"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025), its NaFlex models included.

The form of GELU is that of the library which runs the weights, see `vit.siglip`: registered names
that start with `openclip_` have that of open_clip, the others that of big_vision and transformers.
"""

import dataclasses
import math

from vit_jax.inputs import ImageInputs
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.siglip import (
    NAFLEX_INPUTS,
    NAFLEX_TOWERS,
    TOWERS,
    naflex_tower,
    siglip_tower,
    timm_activation,
)
from vit_jax.models.vit.zoo import BASE, LARGE, SO400M, SO400M_MLP, Sizes

# Rows of the tables of tokens: English C4; mT5, multilingual; Gemma.
ENGLISH, MULTILINGUAL, GEMMA = 32_000, 250_000, 256_000
_TEXT_MLP = {BASE: 3072, LARGE: 4096, SO400M: SO400M_MLP}

_SIGLIP = (
    "b16", "b16_256", "b16_384", "b16_512", "l16_256", "l16_384", "so400m14", "so400m14_384"
)  # fmt: skip
_SIGLIP_I18N = ("b16_256", "so400m16_256")
_SIGLIP2 = tuple(name for name in TOWERS if name != "so400m14_378")
_OPENCLIP_SIGLIP = (*_SIGLIP, "so400m14_378")
_OPENCLIP_SIGLIP2 = tuple(name for name in TOWERS if name != "so400m14_384")


def _siglip(
    name: str, vocab_size: int, *, image_activation: str, text_activation: str
) -> ModelSpec:
    """A dual encoder; its text tower is not causal and is pooled at its last token."""
    image = siglip_tower(name, image_activation)
    # The text tower of gopt is that of So400m.
    sizes: Sizes = TOWERS[name][0] if TOWERS[name][0] in _TEXT_MLP else SO400M
    width, depth, num_heads = sizes
    text = TextConfig(
        vocab_size=vocab_size,
        context_length=16 if vocab_size == ENGLISH and name == "so400m14" else 64,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=_TEXT_MLP[sizes],
        activation=text_activation,
        norm_epsilon=1e-6,
        causal=False,
        pool="last",
        weight_init="xavier",
    )
    return ModelSpec(
        architecture=CLIPConfig(
            image=image,
            text=text,
            embed_dim=image.width,
            image_projection=False,
            text_projection_bias=True,
            init_logit_scale=math.log(10.0),
            init_logit_bias=-10.0,
        ),
        inputs=ImageInputs(resize="squash"),
        tokenizer="gemma" if vocab_size == GEMMA else "sentencepiece",
    )


def _tanh(name: str, vocab_size: int) -> ModelSpec:
    """big_vision and transformers."""
    return _siglip(name, vocab_size, image_activation="gelu_tanh", text_activation="gelu_tanh")


def _naflex(name: str) -> ModelSpec:
    """SigLIP 2 whose images keep their aspect ratio."""
    spec = _tanh(name, GEMMA)
    architecture = dataclasses.replace(spec.architecture, image=naflex_tower(name))
    return dataclasses.replace(spec, architecture=architecture, inputs=NAFLEX_INPUTS)


def _open_clip(name: str, vocab_size: int) -> ModelSpec:
    """open_clip: towers of timm, and texts with the exact form except in SigLIP 2."""
    text = "gelu_tanh" if vocab_size == GEMMA else "gelu"
    return _siglip(name, vocab_size, image_activation=timm_activation(name), text_activation=text)


MODELS: dict[str, ModelSpec] = {
    **{f"siglip_{n}": _tanh(n, ENGLISH) for n in _SIGLIP},
    **{f"siglip_{n}_i18n": _tanh(n, MULTILINGUAL) for n in _SIGLIP_I18N},
    **{f"siglip2_{n}": _tanh(n, GEMMA) for n in _SIGLIP2},
    **{f"siglip2_{name}": _naflex(tower) for name, tower in NAFLEX_TOWERS.items()},
    **{f"openclip_siglip_{n}": _open_clip(n, ENGLISH) for n in _OPENCLIP_SIGLIP},
    **{f"openclip_siglip_{n}_i18n": _open_clip(n, MULTILINGUAL) for n in _SIGLIP_I18N},
    **{f"openclip_siglip2_{n}": _open_clip(n, GEMMA) for n in _OPENCLIP_SIGLIP2},
}

# Words of transformers' names, and of open_clip's.
_SIZES = {"b": "base", "l": "large", "so400m": "so400m", "gopt": "giant-opt"}
_LETTERS = {"b": "B", "l": "L", "so400m": "SO400M", "gopt": "gopt"}


def _parts(name: str) -> tuple[str, int, int]:
    """Letters of a tower's size, its patch size and its image size, px."""
    _, patch_size, image_size, _ = TOWERS[name]
    return name.partition("_")[0].removesuffix(str(patch_size)), patch_size, image_size


def _transformers(family: str, name: str) -> str:
    letters, patch_size, image_size = _parts(name)
    return f"{family}-{_SIZES[letters]}-patch{patch_size}-{image_size}"


def _open_clip_name(family: str, name: str) -> str:
    letters, patch_size, image_size = _parts(name)
    suffix = "" if image_size == 224 else f"-{image_size}"
    return f"ViT-{_LETTERS[letters]}-{patch_size}-{family}{suffix}"


def _big_vision(name: str) -> str:
    letters, patch_size, image_size = _parts(name)
    patch = "" if letters == "so400m" else str(patch_size)
    return f"webli_en_{letters}{patch}_{image_size}"


def _big_vision2(name: str) -> str:
    letters, patch_size, image_size = _parts(name)
    return f"siglip2_{letters.replace('gopt', 'g-opt')}{patch_size}_{image_size}"


ALIASES: dict[str, str] = {
    **{_transformers("siglip", n): f"siglip_{n}" for n in _SIGLIP},
    **{_transformers("siglip2", n): f"siglip2_{n}" for n in _SIGLIP2},
    **{_open_clip_name("SigLIP", n): f"openclip_siglip_{n}" for n in _OPENCLIP_SIGLIP},
    **{_open_clip_name("SigLIP-i18n", n): f"openclip_siglip_{n}_i18n" for n in _SIGLIP_I18N},
    **{_open_clip_name("SigLIP2", n): f"openclip_siglip2_{n}" for n in _OPENCLIP_SIGLIP2},
    "siglip2-base-patch16-naflex": "siglip2_b16_naflex",
    "siglip2-so400m-patch16-naflex": "siglip2_so400m16_naflex",
    "siglip-base-patch16-256-multilingual": "siglip_b16_256_i18n",
    "siglip-so400m-patch16-256-i18n": "siglip_so400m16_256_i18n",
    # big_vision's files, those of SigLIP without the number at their end.
    **{_big_vision(n): f"siglip_{n}" for n in _SIGLIP},
    **{_big_vision2(n): f"siglip2_{n}" for n in _SIGLIP2 if _big_vision2(n) not in MODELS},
}
