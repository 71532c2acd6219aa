"""Architecture in the `open_clip_config.json` of a model folder of open_clip."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.vit.model import ViTConfig

Json = Mapping[str, Any]

# Settings that change a model, and the only value that the format holds. Names of tokenizers and
# what only matters in training is not among them.
_IMAGE_FIXED = {
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "timm_model_name": None,
}
_TEXT_FIXED = {
    "ls_init_value": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "final_ln_after_pool": False,
    "proj_bias": False,
    "proj_type": "linear",
    "hf_model_name": None,
}
_BLOCK_FIXED = {
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}


def clip_config(config: Json) -> CLIPConfig:
    """Returns the architecture of a CLIP of open_clip's own towers.

    Args:
        config: content of the `open_clip_config.json`.

    Raises:
        UserError: the file has no model, or a setting that is not available here.
    """
    model = config.get("model_cfg")
    if not isinstance(model, dict) or not {"vision_cfg", "text_cfg", "embed_dim"} <= model.keys():
        raise UserError(
            "open_clip_config.json: expected model_cfg with embed_dim, vision_cfg and text_cfg; "
            f"found {list(model or config)}"
        )
    image, text = model["vision_cfg"], model["text_cfg"]
    _check("vision_cfg", image, {**_IMAGE_FIXED, **_BLOCK_FIXED})
    _check("text_cfg", text, {**_TEXT_FIXED, **_BLOCK_FIXED})
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    resnet = isinstance(image.get("layers"), list)
    end_id = _end_of_text(text)
    bias: dict[str, Any] = {}
    if model.get("init_logit_bias") is not None:
        bias["init_logit_bias"] = float(model["init_logit_bias"])
    return CLIPConfig(
        image=_resnet(image, model["embed_dim"]) if resnet else _vit(image, activation),
        text=_text(text, _activation("text_cfg", text, activation), end_id=end_id),
        embed_dim=model["embed_dim"],
        image_projection=not resnet,
        **bias,
    )


def _vit(image: Json, activation: str) -> ViTConfig:
    width = image.get("width", 768)
    return ViTConfig(
        image_size=_size(image),
        patch_size=image.get("patch_size", 16),
        width=width,
        depth=image.get("layers", 12),
        num_heads=width // image.get("head_width", 64),
        mlp_dim=int(width * image.get("mlp_ratio", 4.0)),
        activation=_activation("vision_cfg", image, activation),
        norm_epsilon=_epsilon(image),
        layer_scale=image.get("ls_init_value") or 0.0,
        pre_norm=True,
        patch_bias=False,
        weight_init="clip",
    )


def _resnet(image: Json, embed_dim: int) -> CLIPResNetConfig:
    width = image.get("width", 64)
    return CLIPResNetConfig(
        image_size=_size(image),
        depths=tuple(image["layers"]),
        width=width,
        num_heads=width * 32 // image.get("head_width", 64),
        embed_dim=embed_dim,
    )


def coca_fields(config: Json) -> dict[str, Any]:
    """Returns the fields of a CoCa. Its dataclass is in a package that imports this one.

    Args:
        config: content of the `open_clip_config.json`.

    Returns:
        Field of `CoCaConfig` -> value.

    Raises:
        UserError: the file has no such model, or a setting that is not available here.
    """
    model = config.get("model_cfg")
    if not isinstance(model, dict) or "multimodal_cfg" not in model:
        raise UserError("open_clip_config.json: expected model_cfg with multimodal_cfg; found none")
    image, text, decoder = (model[f"{name}_cfg"] for name in ("vision", "text", "multimodal"))
    _check("vision_cfg", image, {**_IMAGE_FIXED, **_BLOCK_FIXED, "attentional_pool": True})
    _check("text_cfg", text, {**_TEXT_FIXED, **_BLOCK_FIXED, "embed_cls": True})
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    tower = _vit(image, activation)
    own = _text(text, _activation("text_cfg", text, activation), pool="last")
    width, depth, num_heads = decoder["width"], decoder["layers"], decoder["heads"]
    return {
        "image": dataclasses.replace(tower, pool="none"),
        "text": own,
        "embed_dim": model["embed_dim"],
        "num_queries": image.get("attn_pooler_queries", 256),
        "pooler_heads": image.get("attn_pooler_heads", 8),
        "decoder": DecoderConfig(
            vocab_size=own.vocab_size,
            context_length=own.context_length,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=int(width * decoder.get("mlp_ratio", 4.0)),
            activation=activation,
            norm_epsilon=1e-5,
            use_bias=True,
            interleaved=True,
            weight_init="clip",
        ),
    }


def _text(text: Json, activation: str, **changes: Any) -> TextConfig:
    width = text.get("width", 512)
    return TextConfig(
        vocab_size=text.get("vocab_size", 49408),
        context_length=text.get("context_length", 77),
        width=width,
        depth=text.get("layers", 12),
        num_heads=text.get("heads", 8),
        mlp_dim=int(width * text.get("mlp_ratio", 4.0)),
        activation=activation,
        norm_epsilon=_epsilon(text),
        **changes,
    )


def _end_of_text(text: Json) -> int | None:
    """Id at which the text tower is pooled; None for the largest id of a text."""
    pool = text.get("pool_type", "argmax")
    if pool not in ("argmax", "eos"):
        raise UserError(
            f"open_clip_config.json: expected text_cfg.pool_type 'argmax' or 'eos'; found {pool!r}"
        )
    return int(text.get("eos_id", 2)) if pool == "eos" else None


def _size(image: Json) -> int | tuple[int, int]:
    size = image.get("image_size", 224)
    return size if isinstance(size, int) else (size[0], size[1])


def _activation(name: str, tower: Json, activation: str) -> str:
    options = tower.get("act_kwargs") or {}
    if not options:
        return activation
    if activation == "gelu" and options == {"approximate": "tanh"}:
        return "gelu_tanh"
    raise UserError(f"open_clip_config.json: {name}.act_kwargs={options} is not available")


def _epsilon(tower: Json) -> float:
    return float((tower.get("norm_kwargs") or {}).get("eps", 1e-5))


def _check(name: str, tower: Json, fixed: Json) -> None:
    for key, expected in fixed.items():
        if tower.get(key, expected) not in (expected, None):
            raise UserError(
                f"open_clip_config.json: expected {name}.{key}={expected}; found {tower[key]!r}"
            )
