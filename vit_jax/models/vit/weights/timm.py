"""timm's `VisionTransformer`: ViT, DeiT, DeiT III, DINOv2, encoder of MAE, image tower of SigLIP.

Its `NaFlexVit`: image tower of SigLIP 2 NaFlex. An encoder of MAE without its decoder, pre-trained
or fine-tuned, has the names of timm, too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.layers.weights import ResizePositions, stored_positions
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.timm import blocks, mlp
from vit_jax.weights.layers.torch import (
    attention_out,
    conv,
    layer_scales,
    linear,
    norm,
    patches,
)
from vit_jax.weights.transforms import LEADING_ONE, Shape, Transform, one_to_one


class TimmViT(Format):
    """State dicts of timm's vision transformers."""

    name = "timm"
    architectures = (ViTConfig,)
    heads = ("head.*", "head_dist.*")
    position_resize = "bicubic_antialias"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has blocks of timm's `VisionTransformer`, and those alone."""
        names = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
        # A decoder of MAE, the mask token of DINOv2's authors, DINOv3, AIMv2.
        others = (
            *("mask_token", "decoder_embed.weight", "blocks.0.gamma_1"),
            "patch_embed.norm.weight",
        )
        return all(name in file for name in names) and not any(name in file for name in others)

    def holds(self, architecture: ViTConfig) -> bool:
        """Returns whether a model is neither DINOv3, AIMv2 nor NaFlex; see `Format.holds`."""
        rotary = architecture.position_init == "rotary"
        return not (rotary or architecture.norm == "rms" or is_naflex(architecture))

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        return vit(architecture)

    def constants(self, architecture: ViTConfig) -> dict[str, np.ndarray]:
        """Returns fixed positions; see `Format.constants`."""
        return constants(architecture)


class TimmNaFlexViT(Format):
    """State dicts of timm's `NaFlexVit` as image tower of SigLIP 2."""

    name = "timm"
    architectures = (ViTConfig,)
    heads = TimmViT.heads
    position_resize = "bilinear_antialias"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has a linear layer for patches, and attention pooling."""
        return "embeds.proj.weight" in file and "attn_pool.latent" in file

    def holds(self, architecture: ViTConfig) -> bool:
        """Returns whether a model is NaFlex; see `Format.holds`."""
        return is_naflex(architecture)

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`.

        Raises:
            UserError: the library's SigLIP 2 NaFlex has other layers.
        """
        config = architecture
        found = (config.pool, config.num_prefix, config.pre_norm)
        if found != ("map", 0, False):
            raise UserError(
                "the format timm holds NaFlex models with pool='map', no tokens before the patches "
                f"and pre_norm=False; found {found}"
            )
        _check_supported(config)
        resize = ResizePositions(config.table_grid, 0, config.position_resize)
        table = on_grid(config.table_grid)
        return [
            *patches("patch_embed", "embeds.proj"),
            Entry("positions", "embeds.pos_embed", table, resize=resize),
            *_blocks(config, "transformer/blocks", "blocks"),
            *norm("norm", "norm"),
            *_map_head("map_head", "attn_pool"),
            *(linear("head", "head") if config.num_classes else []),
        ]


def is_naflex(config: Any) -> bool:
    """Returns whether timm and transformers have an image tower as NaFlex model.

    The rule by which positions are resized is theirs alone.

    Args:
        config: architecture of the tower.
    """
    return getattr(config, "position_resize", "") == TimmNaFlexViT.position_resize


def on_grid(grid: tuple[int, int]) -> Transform:
    """Returns the transform between a table (1, rows, columns, D) and positions (N, D).

    Args:
        grid: rows and columns of the table of the model.
    """
    return one_to_one(
        lambda x, shape: x.reshape(-1, x.shape[-1]), lambda x: x.reshape(1, *grid, x.shape[-1])
    )


def vit(config: ViTConfig, path: str = "", key: str = "") -> list[Entry]:
    """Returns the entries of a tower and of its heads.

    Args:
        config: architecture of the tower.
        path: prefix of the paths in the model, as "image/" for a dual encoder.
        key: prefix of the names in the file, as "visual.trunk." in open_clip.

    Raises:
        UserError: timm has no such model.
    """
    _check_supported(config)
    # timm's `fc_norm` normalizes the mean of the tokens, its `norm` all tokens.
    final_norm = "fc_norm" if config.pool == "mean_norm" else "norm"
    entries = [
        *conv(f"{path}patch_embed", f"{key}patch_embed.proj", bias=config.patch_bias),
        *tokens(config, path, key),
        *_blocks(config, f"{path}transformer/blocks", f"{key}blocks"),
        *norm(f"{path}norm", f"{key}{final_norm}"),
    ]
    if config.pre_norm:
        entries += norm(f"{path}pre_norm", f"{key}norm_pre")
    if config.pool == "map":
        entries += _map_head(f"{path}map_head", f"{key}attn_pool")
    if config.num_classes:
        entries += linear(f"{path}head", f"{key}head")
        if config.has_distillation_head:
            entries += linear(f"{path}distillation_head", f"{key}head_dist")
    return entries


def constants(config: ViTConfig, key: str = "") -> dict[str, np.ndarray]:
    """Returns positions that are not learned, as those of MAE's encoder.

    Args:
        config: architecture of the tower.
        key: prefix of the names in the file.
    """
    if config.position_init != "fixed_sincos":
        return {}
    table = stored_positions(config.fixed_positions(config.grid, config.width), config.num_special)
    return {f"{key}pos_embed": table}


def _check_supported(config: ViTConfig) -> None:
    """Refuses models whose tensors have names in timm but are used differently there."""
    if config.pool == "class_mean":
        raise UserError("timm pools the class token or the mean of the patches; found 'class_mean'")
    if config.distillation and config.num_classes and not config.has_distillation_head:
        raise UserError("timm's distilled models have two heads; found distillation_head=False")
    if config.pool == "map" and config.num_prefix:
        raise UserError(
            "timm's attention pooling reads the patches only; found pool='map' with "
            f"{config.num_prefix} tokens before them"
        )
    if config.distillation and (config.num_registers or config.pool != "class"):
        raise UserError(
            "timm's distilled models pool the class token and have no registers; found "
            f"pool={config.pool!r}, num_registers={config.num_registers}"
        )


def tokens(config: ViTConfig, path: str = "", key: str = "") -> list[Entry]:
    """Returns the entries of learned tokens and positions.

    Args:
        config: architecture of the tower.
        path: prefix of the paths in the model.
        key: prefix of the names in the file.
    """
    entries = []
    if config.distillation:
        entries.append(Entry(f"{path}distillation_token", f"{key}dist_token", LEADING_ONE))
    if config.num_registers:
        entries.append(Entry(f"{path}registers", f"{key}reg_token", LEADING_ONE))
    learned = config.has_table
    num_prefix = config.num_special if config.prefix_positions else 0
    resize = ResizePositions(config.table_grid, num_prefix, config.position_resize)
    if learned and num_prefix and config.num_registers:
        paths = (f"{path}class_token", f"{path}positions")
        keys = (f"{key}cls_token", f"{key}pos_embed")
        return [*entries, Entry(paths, keys, FOLDED_CLASS_POSITION, resize=resize)]
    if config.class_token:
        entries.append(Entry(f"{path}class_token", f"{key}cls_token", LEADING_ONE))
    if learned:
        entries.append(Entry(f"{path}positions", f"{key}pos_embed", LEADING_ONE, resize=resize))
    return entries


def _unfold(arrays: Sequence[np.ndarray], shapes: Sequence[Shape]) -> list[np.ndarray]:
    del shapes
    token, positions = (x[0] for x in arrays)
    return [token, np.concatenate([np.zeros_like(token), positions])]


def _fold(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    token, positions = arrays
    return [(token + positions[:1])[None], positions[1:][None]]


# Class token (1, D) and positions (1 + N, D) of the model, in a file that stores the sum of the
# class token and its position. The position becomes zero on loading and is added to the token on
# saving. A round trip from such a file is exact. From other files the computation is preserved.
# DINOv2 with registers needs it: timm has positions for all tokens or only for the patches.
FOLDED_CLASS_POSITION = Transform(_unfold, _fold)


def _blocks(config: ViTConfig, path: str, key: str) -> list[Entry]:
    entries = blocks(path, key, config.depth, gated_mlp=config.gated_mlp)
    layers = range(config.depth)
    if config.layer_scale:
        entries += layer_scales(path, f"{key}.{{i}}.ls{{n}}.gamma", layers)
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            entries += norm(f"{path}/attention/{name}", f"{key}.{{i}}.attn.{name}", layers)
    return entries


def _map_head(path: str, key: str) -> list[Entry]:
    """`AttentionPoolLatent` with one latent."""
    return [
        Entry(f"{path}/probe", f"{key}.latent", LEADING_ONE),
        *linear(f"{path}/query", f"{key}.q"),
        *linear(f"{path}/key_value", f"{key}.kv"),
        *attention_out(f"{path}/out", f"{key}.proj"),
        *norm(f"{path}/norm", f"{key}.norm"),
        *mlp(f"{path}/mlp", f"{key}.mlp"),
    ]
