"""Architectures from the `config.json` of Hugging Face's transformers."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.errors import UserError, lookup
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.mae.model import MAEConfig
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.files import TensorFile

Fields = Mapping[str, Any]

ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# What the library assumes where a file says nothing; published ones leave much out.
BASE: Fields = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
}
VIT: Fields = {**BASE, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
DINOV2: Fields = {
    **BASE,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4,
    "layerscale_value": 1.0,
    "num_register_tokens": 4,
}
MAE: Fields = {
    **VIT,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
}
SWIN: Fields = {
    "image_size": 224,
    "patch_size": 4,
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
    "mlp_ratio": 4.0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
CLIP_IMAGE: Fields = {
    **BASE,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
CLIP_TEXT: Fields = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
SIGLIP_IMAGE: Fields = {**BASE, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
SIGLIP_TEXT: Fields = {**SIGLIP_IMAGE, "vocab_size": 32000, "max_position_embeddings": 64}


def parse_config(file: TensorFile, config: Fields) -> tuple[str, Any]:
    """Family and architecture of a file.

    Args:
        file: with the weights, whose head tells the number of classes.
        config: its `config.json`.

    Raises:
        UserError: a kind of model or a setting that this library does not have.
    """
    parse = lookup(PARSERS, str(config.get("model_type")), "model_type of config.json")
    for key, expected in (("qkv_bias", True), ("use_swiglu_ffn", False)):
        if config.get(key, expected) is not expected:
            raise UserError(f"config.json: expected {key}={expected}; found {config[key]!r}")
    return parse(config, _num_classes(file))


def _num_classes(file: TensorFile) -> int:
    for key in ("classifier.bias", "cls_classifier.bias"):
        if key in file:
            return file.shape(key)[0]
    return 0


def _stack(fields: Fields) -> dict[str, Any]:
    """Fields that image and text towers have in common."""
    return {
        "width": fields["hidden_size"],
        "depth": fields["num_hidden_layers"],
        "num_heads": fields["num_attention_heads"],
        "mlp_dim": fields["intermediate_size"],
        "activation": lookup(ACTIVATIONS, fields["hidden_act"], "hidden_act"),
        "norm_epsilon": fields["layer_norm_eps"],
    }


def _image(fields: Fields, **changes: Any) -> ViTConfig:
    sizes = {"image_size": fields["image_size"], "patch_size": fields["patch_size"]}
    return ViTConfig(**{**sizes, **_stack(fields), **changes})


def _text(fields: Fields, **changes: Any) -> TextConfig:
    return TextConfig(
        vocab_size=fields["vocab_size"],
        context_length=fields["max_position_embeddings"],
        **_stack(fields),
        **changes,
    )


def _vit(config: Fields, num_classes: int, **changes: Any) -> tuple[str, Any]:
    return "vit", _image({**VIT, **config}, num_classes=num_classes, **changes)


def _deit(config: Fields, num_classes: int) -> tuple[str, Any]:
    return _vit(config, num_classes, distillation=True)


def _dinov2(config: Fields, num_classes: int) -> tuple[str, Any]:
    fields = {**DINOV2, **config}
    registers = fields["num_register_tokens"] if config["model_type"] != "dinov2" else 0
    return "vit", _image(
        fields,
        mlp_dim=int(fields["hidden_size"] * fields["mlp_ratio"]),
        layer_scale=fields["layerscale_value"],
        num_registers=registers,
        num_classes=num_classes,
    )


def _mae(config: Fields, num_classes: int) -> tuple[str, Any]:
    del num_classes
    fields = {**MAE, **config}
    return "mae", MAEConfig(
        image=_image(fields, position_init="fixed_sincos", weight_init="xavier"),
        decoder_width=fields["decoder_hidden_size"],
        decoder_depth=fields["decoder_num_hidden_layers"],
        decoder_num_heads=fields["decoder_num_attention_heads"],
        decoder_mlp_dim=fields["decoder_intermediate_size"],
    )


def _swin(config: Fields, num_classes: int) -> tuple[str, Any]:
    fields = {**SWIN, **config}
    return "swin", SwinConfig(
        image_size=fields["image_size"],
        patch_size=fields["patch_size"],
        width=fields["embed_dim"],
        depths=tuple(fields["depths"]),
        num_heads=tuple(fields["num_heads"]),
        window_size=fields["window_size"],
        mlp_ratio=fields["mlp_ratio"],
        activation=lookup(ACTIVATIONS, fields["hidden_act"], "hidden_act"),
        norm_epsilon=fields["layer_norm_eps"],
        num_classes=num_classes,
    )


def _tower(config: Fields, name: str, defaults: Fields) -> Fields:
    """Settings of one tower; old files repeat those that count under a second name."""
    overrides = config.get(f"{name}_dict") or {}
    return {**defaults, **config.get(name, {}), **overrides}


def _clip(config: Fields, num_classes: int) -> tuple[str, Any]:
    del num_classes
    return "clip", CLIPConfig(
        image=_image(
            _tower(config, "vision_config", CLIP_IMAGE),
            pre_norm=True,
            patch_bias=False,
            weight_init="clip",
        ),
        text=_text(_tower(config, "text_config", CLIP_TEXT)),
        embed_dim=config.get("projection_dim", 512),
    )


def _siglip(config: Fields, num_classes: int) -> tuple[str, Any]:
    del num_classes
    image = _image(
        _tower(config, "vision_config", SIGLIP_IMAGE),
        class_token=False,
        pool="map",
        weight_init="xavier",
    )
    text = _tower(config, "text_config", SIGLIP_TEXT)
    return "clip", CLIPConfig(
        image=image,
        text=_text(text, causal=False, pool="last", weight_init="xavier"),
        embed_dim=text.get("projection_size", text["hidden_size"]),
        image_projection=False,
        text_projection_bias=True,
        init_logit_scale=math.log(10.0),
        init_logit_bias=-10.0,
    )


PARSERS: dict[str, Callable[[Fields, int], tuple[str, Any]]] = {
    "vit": _vit,
    "deit": _deit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "vit_mae": _mae,
    "swin": _swin,
    "clip": _clip,
    "siglip": _siglip,
}
