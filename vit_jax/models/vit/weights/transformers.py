"""ViT, DeiT and DINOv2 of Hugging Face's transformers.

Models without a head (ViTModel, Dinov2Model) have bare names. Models with a head
(ViTForImageClassification) prefix the names of the tower with the model type.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError, lookup
from vit_jax.models.layers.weights import ResizePositions, stored_positions
from vit_jax.models.sizes import as_size
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import conv, layer_scales, linear, norm
from vit_jax.weights.layers.transformers_flax import FlaxNames
from vit_jax.weights.transforms import LEADING_ONE

PREFIXES = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.")
# Defaults of the library by model type. Published configs leave them out.
VIT: layers.Settings = {**layers.BASE, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
DINOV2: layers.Settings = {
    **layers.BASE,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}
DEFAULTS: Mapping[str, layers.Settings] = {
    "vit": VIT,
    "deit": VIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": {**DINOV2, "num_register_tokens": 4},
}


class TransformersViT(Format):
    """Files of ViT, DeiT and DINOv2 with or without registers."""

    name = layers.NAME
    architectures = (ViTConfig,)
    # The poolers of ViTModel and DeiTModel, and the mask token of DINOv2's pre-training.
    ignored = ("*.position_ids", "*pooler.dense.*", "*embeddings.mask_token")
    heads = layers.HEADS
    position_resize = "bicubic"

    def holds(self, architecture: ViTConfig) -> bool:
        """Returns whether a model is neither DINOv3 nor AIMv2; see `Format.holds`."""
        return architecture.position_init != "rotary" and architecture.norm != "rms"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has an embedding of patches with a class token and no decoder."""
        names = ("", *PREFIXES)
        has_class_token = any(f"{prefix}embeddings.cls_token" in file for prefix in names)
        has_decoder = any(key.startswith("decoder.") for key in file)
        return has_class_token and not has_decoder and layers.has_patch_embedding(file, PREFIXES)

    def view(self, file: TensorFile, architecture: ViTConfig) -> TensorFile:
        """Returns the file under the names of published files; see `Format.view`."""
        return layers.published_names(file, _names(architecture), PREFIXES, _prefix(architecture))

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        return tower(architecture, "", _prefix(architecture)) + _heads(architecture)

    def resize_rule(self, architecture: ViTConfig) -> str:
        """Returns the rule of ViT, or that of DINOv2 with registers; see `Format.resize_rule`."""
        return "bicubic_antialias" if architecture.num_registers else self.position_resize

    def constants(self, architecture: ViTConfig) -> dict[str, np.ndarray]:
        """Returns fixed positions and DINOv2's mask token; see `Format.constants`."""
        return constants(architecture, _prefix(architecture))

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> ViTConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        if config is None:
            return None
        kind = str(config.get("model_type"))
        settings = {**lookup(DEFAULTS, kind, "model_type of config.json"), **config}
        layers.check_settings(config)
        changes: dict[str, Any] = {"num_classes": layers.num_classes(file, config)}
        if kind == "deit":
            changes["distillation"] = True
            changes["distillation_head"] = "classifier.bias" not in file
        if kind.startswith("dinov2"):
            changes |= _dinov2_fields(settings)
            changes["pool"] = "class_mean" if changes["num_classes"] else "class"
        if kind == "dinov2_with_registers":
            changes["num_registers"] = settings["num_register_tokens"]
        return vit_config(settings, **changes)


class FlaxViT(FlaxNames, TransformersViT):
    """Flax's ViT and DINOv2."""


def _dinov2_fields(settings: layers.Settings) -> dict[str, Any]:
    """Fields of DINOv2 that its settings name otherwise than those of ViT."""
    mlp_dim = int(settings["hidden_size"] * settings["mlp_ratio"])
    fields = {"mlp_dim": mlp_dim, "layer_scale": settings["layerscale_value"]}
    if not settings["use_swiglu_ffn"]:
        return fields
    # Two thirds, so that the third layer adds no parameters; a multiple of 8.
    mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
    return {**fields, "mlp_dim": mlp_dim, "gated_mlp": True, "activation": "silu"}


def vit_config(settings: layers.Settings, **changes: Any) -> ViTConfig:
    """Returns the architecture of an image tower.

    Args:
        settings: content of `config.json`, or of its part for the tower, with defaults.
        **changes: fields of the architecture that `settings` does not determine.
    """
    size, patch_size = layers.image_size(settings), settings["patch_size"]
    fields = {
        "image_size": size,
        "patch_size": patch_size,
        "drop_remainder": any(side % patch_size for side in as_size(size)),
        **layers.stack_fields(settings),
    }
    return ViTConfig(**{**fields, **changes})


def tower(config: ViTConfig, path: str, prefix: str) -> list[Entry]:
    """Returns the entries of a tower without heads.

    Args:
        config: architecture of the tower.
        path: prefix of the paths in the model.
        prefix: prefix of the names in the file.

    Raises:
        UserError: the library has no such model.
    """
    _check_supported(config)
    embeddings = f"{prefix}embeddings"
    entries = [
        Entry(f"{path}class_token", f"{embeddings}.cls_token", LEADING_ONE),
        *conv(f"{path}patch_embed", f"{embeddings}.patch_embeddings.projection"),
        *norm(f"{path}norm", f"{prefix}layernorm"),
    ]
    if config.distillation:
        key = f"{embeddings}.distillation_token"
        entries.append(Entry(f"{path}distillation_token", key, LEADING_ONE))
    if config.num_registers:
        entries.append(Entry(f"{path}registers", f"{embeddings}.register_tokens", LEADING_ONE))
    if config.has_table:
        resize = ResizePositions(config.table_grid, config.num_special, config.position_resize)
        key = f"{embeddings}.position_embeddings"
        entries.append(Entry(f"{path}positions", key, LEADING_ONE, resize=resize))
    return entries + _blocks(config, f"{path}transformer/blocks", f"{prefix}encoder.layer")


def constants(config: ViTConfig, prefix: str) -> dict[str, np.ndarray]:
    """Returns positions that are not learned, and the mask token of DINOv2.

    Args:
        config: architecture of the tower.
        prefix: prefix of the names in the file.
    """
    found: dict[str, np.ndarray] = {}
    if config.position_init == "fixed_sincos":
        table = stored_positions(
            config.fixed_positions(config.grid, config.width), config.num_special
        )
        found[f"{prefix}embeddings.position_embeddings"] = table
    if config.layer_scale:
        found[f"{prefix}embeddings.mask_token"] = np.zeros((1, config.width), np.float32)
    return found


def _prefix(config: ViTConfig) -> str:
    """Prefix of the names of the tower in published files."""
    if not config.num_classes:
        return ""
    if config.layer_scale:
        return "dinov2_with_registers." if config.num_registers else "dinov2."
    return "deit." if config.distillation else "vit."


def _check_supported(config: ViTConfig) -> None:
    """Refuses models whose tensors have names in the library but are used differently there."""
    fixed = config.position_init == "fixed_sincos"
    pool = "class_mean" if config.layer_scale and config.num_classes else "class"
    found = (config.class_token, config.pool, config.prefix_positions or fixed)
    if found != (True, pool, True):
        raise UserError(
            f"the format transformers holds ViT with class_token=True, pool={pool!r} and "
            f"prefix_positions=True; found {found}"
        )
    if config.distillation and config.layer_scale:
        raise UserError("the format transformers holds DINOv2 without a distillation token")


def _names(config: ViTConfig) -> layers.BlockNames:
    if not config.layer_scale:
        return layers.VIT
    return layers.DINOV2_GIANT if config.gated_mlp else layers.DINOV2


def _blocks(config: ViTConfig, path: str, key: str) -> list[Entry]:
    names, gated = _names(config), config.gated_mlp
    entries = layers.blocks(path, key, names, config.depth, gated_mlp=gated)
    if config.layer_scale:
        scales = f"{key}.{{i}}.{layers.LAYER_SCALES}"
        entries += layer_scales(path, scales, range(config.depth))
    return entries


def _heads(config: ViTConfig) -> list[Entry]:
    if not config.num_classes:
        return []
    if config.has_distillation_head:
        return [
            *linear("head", "cls_classifier"),
            *linear("distillation_head", "distillation_classifier"),
        ]
    return linear("head", "classifier")
