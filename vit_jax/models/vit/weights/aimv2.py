"""AIMv2's image encoders in timm and in Hugging Face's transformers."""

from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.layers.weights import ResizePositions
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights import timm
from vit_jax.models.vit.weights.transformers import vit_config
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.timm import SEPARATE_GATE, blocks
from vit_jax.weights.layers.torch import conv, linear, norm

# Defaults of transformers. Published configs leave them out.
DEFAULTS: layers.Settings = {
    **layers.BASE,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "intermediate_size": 2816,
    "patch_size": 14,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "qkv_bias": False,
    "mlp_bias": False,
    "use_head": True,
    "is_native": False,
}


class AIMv2(Format):
    """What both libraries have in common."""

    architectures = (ViTConfig,)

    def holds(self, architecture: ViTConfig) -> bool:
        """Returns whether a model has RMSNorms; see `Format.holds`."""
        return architecture.norm == "rms"

    def settle(self, architecture: ViTConfig, file: TensorFile) -> ViTConfig:
        """Returns the architecture: fixed positions are computed for each grid."""
        fixed = architecture.position_init == "fixed_sincos"
        return architecture if fixed else super().settle(architecture, file)


class TimmAIMv2(AIMv2):
    """State dicts of timm."""

    name = timm.TimmViT.name
    heads = timm.TimmViT.heads
    position_resize = timm.TimmViT.position_resize

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has a norm of the patches and gated MLPs."""
        names = ("patch_embed.norm.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1_g.weight")
        return all(name in file for name in names)

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config = architecture
        check_blocks(config, self.name)
        if config.pool != "mean" or not config.has_table:
            raise UserError(
                "timm's AIMv2 has learned positions and pool='mean'; found "
                f"position_init={config.position_init!r}, pool={config.pool!r}"
            )
        return [
            *conv("patch_embed", "patch_embed.proj"),
            *norm("patch_norm", "patch_embed.norm", bias=False),
            *timm.tokens(config),
            *blocks(
                "transformer/blocks",
                "blocks",
                config.depth,
                mlp_layers=SEPARATE_GATE,
                norm_bias=False,
                qkv_bias=False,
                use_bias=False,
            ),
            *norm("norm", "norm", bias=False),
            *(linear("head", "head") if config.num_classes else []),
        ]


class TransformersAIMv2(AIMv2):
    """Files of transformers (Aimv2VisionModel without its pooling head)."""

    name = layers.NAME

    def resize_rule(self, architecture: ViTConfig) -> str:
        """Returns the model's own rule: the library has none; see `Format.resize_rule`."""
        return architecture.position_resize

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has AIMv2's image encoder, and no other part of a model."""
        names = ("embeddings.patch_embed.weight", "encoder.layers.0.ffn.gate_proj.weight")
        return all(name in file for name in names)

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config = architecture
        check_blocks(config, self.name)
        if config.pool not in ("mean", "none") or config.num_classes:
            raise UserError(
                "the format transformers holds AIMv2 without a pooling head and without classes; "
                f"found pool={config.pool!r}, num_classes={config.num_classes}"
            )
        return tower(config)

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> ViTConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        settings: dict[str, Any] = {**DEFAULTS, **config}
        if settings["use_head"] or settings["qkv_bias"] or settings["mlp_bias"]:
            raise UserError(
                "config.json: expected AIMv2 with use_head=False, qkv_bias=False, mlp_bias=False; "
                f"found {settings['use_head']}, {settings['qkv_bias']}, {settings['mlp_bias']}"
            )
        return aimv2_config(settings)


def check_blocks(config: ViTConfig, name: str) -> None:
    """Refuses what no AIMv2 has.

    Args:
        config: architecture of the image tower.
        name: name of the format.

    Raises:
        UserError: other blocks or tokens.
    """
    found = (config.gated_mlp, config.qkv_bias, config.use_bias, config.patch_norm)
    if found != (True, "none", False, True) or config.class_token or config.layer_scale:
        raise UserError(
            f"the format {name} holds models with norm='rms' as AIMv2: gated_mlp=True, "
            "qkv_bias='none', use_bias=False, patch_norm=True, no class token and no "
            f"layer_scale; found {found}, class_token={config.class_token}, "
            f"layer_scale={config.layer_scale}"
        )


def tower(config: ViTConfig, path: str = "", prefix: str = "") -> list[Entry]:
    """Returns the entries of an image tower without a pooling head.

    Args:
        config: architecture of the tower.
        path: prefix of the paths in the model.
        prefix: prefix of the names in the file.
    """
    entries = [
        *conv(f"{path}patch_embed", f"{prefix}embeddings.patch_embed"),
        *norm(f"{path}patch_norm", f"{prefix}embeddings.rms_norm", bias=False),
        *stack(f"{path}transformer/blocks", f"{prefix}encoder.layers", config.depth),
    ]
    if config.pool != "none":
        entries += norm(f"{path}norm", f"{prefix}rms_norm", bias=False)
    if config.has_table:
        resize = ResizePositions(config.table_grid, 0, config.position_resize)
        key = f"{prefix}embeddings.position_embedding.weight"
        entries.append(Entry(f"{path}positions", key, resize=resize))
    return entries


def stack(path: str, key: str, depth: int) -> list[Entry]:
    """Returns the entries of the blocks of a tower.

    Args:
        path: path of the stacked blocks in the model.
        key: name of the blocks in the file, without the number.
        depth: number of blocks.
    """
    return layers.blocks(
        path,
        key,
        layers.AIMV2,
        depth,
        norm_bias=False,
        gated_mlp=True,
        qkv_bias="none",
        use_bias=False,
    )


def aimv2_config(settings: layers.Settings, *, pool: str = "mean") -> ViTConfig:
    """Returns the architecture of an image tower.

    Args:
        settings: content of `config.json`, or of its part for the tower, with defaults.
        pool: pooling, which the settings do not determine.
    """
    return vit_config(
        {**settings, "layer_norm_eps": settings["rms_norm_eps"]},
        norm="rms",
        gated_mlp=True,
        qkv_bias="none",
        use_bias=False,
        patch_norm=True,
        class_token=False,
        pool=pool,
        position_init="fixed_sincos" if settings["is_native"] else "normal",
    )
