"""ViT, DeiT, DINOv2 and MAE in Hugging Face's transformers.

Their models without a head (ViTModel, Dinov2Model, ...) have bare names, those with one
(ViTForImageClassification, ...) put the library's name for the model before them.
"""

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.mae.model import MAEConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.layers.torch import conv, fixed_positions, linear, norm
from vit_jax.weights.layers.transformers import DINOV2, VIT, blocks
from vit_jax.weights.mapping import Entry, ResizePositions
from vit_jax.weights.transforms import LEADING_ONE

MAE_PREFIX = "vit."


def model_type(config: ViTConfig) -> str:
    """The library's name for such a model."""
    if config.layer_scale:
        return "dinov2_with_registers" if config.num_registers else "dinov2"
    return "deit" if config.distillation else "vit"


def vit_prefix(config: ViTConfig) -> str:
    """What stands before the names of the tower."""
    return f"{model_type(config)}." if config.num_classes else ""


def vit_entries(config: ViTConfig) -> list[Entry]:
    """The mapping of a tower or classifier.

    Raises:
        UserError: the library has no such model.
    """
    _check(config)
    return [*_tower(config, "", vit_prefix(config)), *_heads(config)]


def vit_constants(config: ViTConfig) -> dict[str, np.ndarray]:
    """Fixed positions; DINOv2's token for hidden patches, which pre-training alone uses."""
    return _tower_constants(config, vit_prefix(config))


def mae_entries(config: MAEConfig) -> list[Entry]:
    """The mapping of ViTMAEForPreTraining."""
    _check(config.image)
    return [
        *_tower(config.image, "image/", MAE_PREFIX),
        *linear("decoder_embed", "decoder.decoder_embed"),
        Entry("mask_token", "decoder.mask_token", LEADING_ONE),
        *blocks("decoder/blocks", "decoder.decoder_layers.{i}", VIT, range(config.decoder_depth)),
        *norm("decoder_norm", "decoder.decoder_norm"),
        *linear("decoder_head", "decoder.decoder_pred"),
    ]


def mae_constants(config: MAEConfig) -> dict[str, np.ndarray]:
    """Fixed positions of encoder and decoder."""
    table = fixed_positions(config.image, config.decoder_width)
    constants = _tower_constants(config.image, MAE_PREFIX)
    return constants | {"decoder.decoder_pos_embed": table}


def _check(config: ViTConfig) -> None:
    """Refuses what has the parameters of their models but uses them in another way."""
    if config.num_classes and config.layer_scale:
        raise UserError(
            "the format transformers holds DINOv2 without a head: theirs reads the class token and "
            "the mean of the patches together; set num_classes=0"
        )
    fixed = config.position_init == "fixed_sincos"
    found = (config.class_token, config.pool, config.prefix_positions or fixed)
    if found != (True, "class", True):
        raise UserError(
            "the format transformers holds ViTs with class_token=True, pool='class' and "
            f"prefix_positions=True; found {found}"
        )


def _tower(config: ViTConfig, path: str, prefix: str) -> list[Entry]:
    """The tower.

    Args:
        config: of the tower.
        path: before our names.
        prefix: before theirs.
    """
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
    if config.position_init != "fixed_sincos":
        resize = ResizePositions(config.grid, config.num_special)
        key = f"{embeddings}.position_embeddings"
        entries.append(Entry(f"{path}positions", key, LEADING_ONE, resize=resize))
    return entries + _tower_blocks(config, f"{path}transformer/blocks", f"{prefix}encoder.layer")


def _tower_blocks(config: ViTConfig, path: str, key: str) -> list[Entry]:
    layers, key = range(config.depth), f"{key}.{{i}}"
    if not config.layer_scale:
        return blocks(path, key, VIT, layers)
    return [
        *blocks(path, key, DINOV2, layers),
        Entry(f"{path}/scale1/gamma", f"{key}.layer_scale1.lambda1", layers=layers),
        Entry(f"{path}/scale2/gamma", f"{key}.layer_scale2.lambda1", layers=layers),
    ]


def _heads(config: ViTConfig) -> list[Entry]:
    if not config.num_classes:
        return []
    if config.distillation:
        return [
            *linear("head", "cls_classifier"),
            *linear("distillation_head", "distillation_classifier"),
        ]
    return linear("head", "classifier")


def _tower_constants(config: ViTConfig, prefix: str) -> dict[str, np.ndarray]:
    constants: dict[str, np.ndarray] = {}
    if config.position_init == "fixed_sincos":
        table = fixed_positions(config, config.width)
        constants[f"{prefix}embeddings.position_embeddings"] = table
    if config.layer_scale:
        constants[f"{prefix}embeddings.mask_token"] = np.zeros((1, config.width), np.float32)
    return constants
