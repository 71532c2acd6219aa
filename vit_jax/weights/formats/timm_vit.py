"""timm's `VisionTransformer` and its kin: DeiT, DINOv2, encoder of MAE, image tower of SigLIP."""

from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.layers.transformer import BlockConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.layers.torch import attention_out, conv, fixed_positions, linear, norm
from vit_jax.weights.mapping import Entry, ResizePositions
from vit_jax.weights.transforms import LEADING_ONE, Shape, Transform


def vit(config: ViTConfig, path: str = "", key: str = "") -> list[Entry]:
    """A tower, with its heads if it has any.

    Args:
        config: of the tower.
        path: what stands before our names: "image/" in a pair of towers.
        key: what stands before theirs: "visual.trunk." in open_clip.

    Raises:
        UserError: timm has no such model.
    """
    check_supported(config)
    # Without `fc_norm` timm normalises all tokens, with it their mean.
    final_norm = "fc_norm" if config.pool == "mean_norm" else "norm"
    entries = [
        *conv(f"{path}patch_embed", f"{key}patch_embed.proj", bias=config.patch_bias),
        *tokens(config, path, key),
        *blocks(config.block, config.depth, f"{path}transformer/blocks", f"{key}blocks"),
        *norm(f"{path}norm", f"{key}{final_norm}"),
    ]
    if config.pre_norm:
        entries += norm(f"{path}pre_norm", f"{key}norm_pre")
    if config.pool == "map":
        entries += map_head(f"{path}map_head", f"{key}attn_pool")
    if config.num_classes:
        entries += linear(f"{path}head", f"{key}head")
        if config.distillation:
            entries += linear(f"{path}distillation_head", f"{key}head_dist")
    return entries


def check_supported(config: ViTConfig) -> None:
    """Refuses what has names in timm but computes something else there."""
    if config.pool == "map" and config.num_prefix:
        raise UserError(
            "timm's attention pooling sees the patches alone; found pool='map' with "
            f"{config.num_prefix} tokens before them"
        )
    if config.distillation and (config.num_registers or config.pool != "class"):
        raise UserError(
            "timm's distilled models pool the class token and have no registers; found "
            f"pool={config.pool!r}, num_registers={config.num_registers}"
        )


def tokens(config: ViTConfig, path: str, key: str) -> list[Entry]:
    """Learned tokens and positions."""
    entries = []
    if config.distillation:
        entries.append(Entry(f"{path}distillation_token", f"{key}dist_token", LEADING_ONE))
    if config.num_registers:
        entries.append(Entry(f"{path}registers", f"{key}reg_token", LEADING_ONE))
    learned = config.position_init != "fixed_sincos"
    num_prefix = config.num_special if config.prefix_positions else 0
    resize = ResizePositions(config.grid, num_prefix)
    if learned and num_prefix and config.num_registers:
        ours, theirs = ("class_token", "positions"), ("cls_token", "pos_embed")
        paths, keys = [path + name for name in ours], [key + name for name in theirs]
        return [*entries, Entry(tuple(paths), tuple(keys), FOLDED_CLASS_POSITION, resize=resize)]
    if config.class_token:
        entries.append(Entry(f"{path}class_token", f"{key}cls_token", LEADING_ONE))
    if learned:
        entries.append(Entry(f"{path}positions", f"{key}pos_embed", LEADING_ONE, resize=resize))
    return entries


def constants(config: ViTConfig, key: str = "") -> dict[str, np.ndarray]:
    """Positions that do not learn, as those of MAE's encoder."""
    if config.position_init != "fixed_sincos":
        return {}
    return {f"{key}pos_embed": fixed_positions(config, config.width)}


def _unfold(arrays: Sequence[np.ndarray], shapes: Sequence[Shape]) -> list[np.ndarray]:
    token, positions = (x[0] for x in arrays)
    return [token, np.concatenate([np.zeros_like(token), positions])]


def _fold(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    token, positions = arrays
    return [(token + positions[:1])[None], positions[1:][None]]


# DINOv2 with registers has a position for the class token and none for the registers. timm knows
# positions for all tokens or for the patches alone, and adds the class token's to the token itself;
# so what comes from timm has a position of zero there, and what goes to timm is added up. The one
# transform that computes: a round trip is exact from timm, and from elsewhere in what it does.
FOLDED_CLASS_POSITION = Transform(_unfold, _fold)


def blocks(config: BlockConfig, depth: int, path: str, key: str) -> list[Entry]:
    """The stack of blocks.

    Args:
        config: of the blocks.
        depth: number of blocks.
        path: of ours, stacked.
        key: of theirs, without the number.
    """
    key, layers = f"{key}.{{i}}", range(depth)
    entries = [
        *norm(f"{path}/norm1", f"{key}.norm1", layers),
        *linear(f"{path}/attention/qkv", f"{key}.attn.qkv", layers),
        *attention_out(f"{path}/attention/out", f"{key}.attn.proj", layers),
        *norm(f"{path}/norm2", f"{key}.norm2", layers),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.fc1", layers),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.fc2", layers),
    ]
    if config.layer_scale:
        for i in (1, 2):
            entries.append(Entry(f"{path}/scale{i}/gamma", f"{key}.ls{i}.gamma", layers=layers))
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            entries += norm(f"{path}/attention/{name}", f"{key}.attn.{name}", layers)
    return entries


def map_head(path: str, key: str) -> list[Entry]:
    """`AttentionPoolLatent` with one latent."""
    return [
        Entry(f"{path}/probe", f"{key}.latent", LEADING_ONE),
        *linear(f"{path}/query", f"{key}.q"),
        *linear(f"{path}/key_value", f"{key}.kv"),
        *attention_out(f"{path}/out", f"{key}.proj"),
        *norm(f"{path}/norm", f"{key}.norm"),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.fc1"),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.fc2"),
    ]
