"""DINOv3 (Siméoni et al. 2025) in timm (its `Eva`), in transformers, and of its authors."""

from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights import timm
from vit_jax.models.vit.weights.transformers import vit_config
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.timm import SEPARATE_GATE, blocks
from vit_jax.weights.layers.torch import conv, layer_scales, linear, norm
from vit_jax.weights.transforms import (
    LEADING_ONE,
    SEPARATE_QKV_BIAS,
    Shape,
    one_to_one,
)

# Factor by which training scales the coordinates at most; not in the files of timm.
RESCALE = 2.0
# Defaults of transformers. Published configs leave them out.
DEFAULTS: layers.Settings = {
    **layers.BASE,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "layerscale_value": 1.0,
    "num_register_tokens": 0,
    "rope_theta": 100.0,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "use_gated_mlp": False,
    "pos_embed_rescale": RESCALE,
}
_MASK = "embeddings.mask_token"


class DINOv3(Format):
    """What the layouts have in common."""

    architectures = (ViTConfig,)

    def resize_rule(self, architecture: ViTConfig) -> str:
        """Returns the model's own rule: it has no table; see `Format.resize_rule`."""
        return architecture.position_resize


class TimmDINOv3(DINOv3):
    """State dicts of timm, whose models without `qkvb` in their names have no such biases."""

    name = timm.TimmViT.name
    heads = timm.TimmViT.heads

    def holds(self, architecture: ViTConfig) -> bool:
        """Returns whether a model is rotary; see `Format.holds`."""
        return architecture.position_init == "rotary"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has blocks of timm's `Eva` with LayerScale and a fused qkv."""
        names = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.gamma_1")
        return all(name in file for name in names) and "pos_embed" not in file

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config = architecture
        found = (config.qkv_bias, config.pool)
        if config.qkv_bias == "qkv" or config.pool not in ("class", "mean", "mean_norm"):
            raise UserError(
                "timm's DINOv3 has qkv_bias='qv' or 'none' and pools 'class', 'mean' or "
                f"'mean_norm'; found {found}"
            )
        head = linear("head", "head") if config.num_classes else []
        return [
            *conv("patch_embed", "patch_embed.proj"),
            *timm.tokens(config),
            *_timm_blocks(config, "transformer/blocks", "blocks"),
            *norm("norm", "fc_norm" if config.pool == "mean_norm" else "norm"),
            *head,
        ]


def _timm_blocks(config: ViTConfig, path: str, key: str) -> list[Entry]:
    mlp_layers = SEPARATE_GATE if config.gated_mlp else None
    entries = blocks(path, key, config.depth, qkv_bias=False, mlp_layers=mlp_layers)
    numbers, key = range(config.depth), f"{key}.{{i}}"
    if config.qkv_bias == "qv":
        biases = (f"{key}.attn.q_bias", f"{key}.attn.v_bias")
        entries.append(Entry(f"{path}/attention/qv_bias", biases, SEPARATE_QKV_BIAS, numbers))
    return entries + layer_scales(path, f"{key}.gamma_{{n}}", numbers)


class TransformersDINOv3(DINOv3):
    """Files of transformers (DINOv3ViTModel)."""

    name = layers.NAME
    ignored = (_MASK,)

    def holds(self, architecture: ViTConfig) -> bool:
        """Returns whether a model is rotary; see `Format.holds`."""
        return architecture.position_init == "rotary"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has DINOv3's embedding of patches and registers."""
        names = ("embeddings.patch_embeddings.weight", "embeddings.register_tokens")
        return all(name in file for name in names)

    def view(self, file: TensorFile, architecture: ViTConfig) -> TensorFile:
        """Returns the file under the names of published files; see `Format.view`."""
        del architecture
        return file.renamed(lambda key: key.removeprefix("model."))

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config, path = architecture, "transformer/blocks"
        if config.pool != "class" or config.num_classes or not config.num_registers:
            raise UserError(
                "the format transformers holds DINOv3 with registers, pool='class' and no head; "
                f"found num_registers={config.num_registers}, pool={config.pool!r}, "
                f"num_classes={config.num_classes}"
            )
        return [
            *conv("patch_embed", "embeddings.patch_embeddings"),
            Entry("class_token", "embeddings.cls_token", LEADING_ONE),
            Entry("registers", "embeddings.register_tokens", LEADING_ONE),
            *layers.blocks(
                path,
                "layer",
                layers.DINOV3,
                config.depth,
                gated_mlp=config.gated_mlp,
                qkv_bias=config.qkv_bias,
                use_bias=config.use_bias,
            ),
            *layer_scales(path, f"layer.{{i}}.{layers.LAYER_SCALES}", range(config.depth)),
            *norm("norm", "norm"),
        ]

    def constants(self, architecture: ViTConfig) -> dict[str, np.ndarray]:
        """Returns the mask token of the pre-training; see `Format.constants`."""
        return {_MASK: np.zeros((1, 1, architecture.width), np.float32)}

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> ViTConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        settings: dict[str, Any] = {**DEFAULTS, **config}
        if settings["rope_theta"] != DEFAULTS["rope_theta"]:
            raise UserError(f"config.json: expected rope_theta=100; found {settings['rope_theta']}")
        biases = "".join(n[0] for n in ("query", "key", "value") if settings[f"{n}_bias"])
        if settings["proj_bias"] != settings["mlp_bias"]:
            raise UserError("config.json: expected proj_bias and mlp_bias to be equal")
        return vit_config(
            settings,
            position_init="rotary",
            rotary_rescale=settings["pos_embed_rescale"] or 1.0,
            layer_scale=settings["layerscale_value"],
            num_registers=settings["num_register_tokens"],
            gated_mlp=settings["use_gated_mlp"],
            qkv_bias=biases or "none",
            use_bias=settings["mlp_bias"],
        )


class OfficialDINOv3(DINOv3):
    """Backbones as their authors published them (github.com/facebookresearch/dinov3).

    One bias of queries, keys and values, of which a mask clears that of the keys. The periods of
    the rotation lie in the file, rounded to bfloat16; they are computed here.
    """

    name = "dinov3"
    ignored = ("mask_token", "rope_embed.periods", "*.bias_mask")

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the registers and the blocks of DINOv3."""
        names = ("storage_tokens", "blocks.0.ls1.gamma", "blocks.0.attn.qkv.weight")
        return all(name in file for name in names)

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config, path, key = architecture, "transformer/blocks", "blocks.{i}"
        found = (config.position_init, config.qkv_bias, config.pool, config.num_classes)
        if found != ("rotary", "qv", "class", 0):
            raise UserError(
                f"the format {self.name} holds models with position_init='rotary', qkv_bias='qv', "
                f"pool='class' and num_classes=0; found {found}"
            )
        numbers = range(config.depth)
        mlp_layers = {"gate": "w1", "fc1": "w2", "fc2": "w3"} if config.gated_mlp else None
        return [
            *conv("patch_embed", "patch_embed.proj"),
            Entry("class_token", "cls_token", LEADING_ONE),
            Entry("registers", "storage_tokens", LEADING_ONE),
            *blocks(path, "blocks", config.depth, qkv_bias=False, mlp_layers=mlp_layers),
            Entry(f"{path}/attention/qv_bias", f"{key}.attn.qkv.bias", _WITHOUT_KEYS, numbers),
            *layer_scales(path, f"{key}.ls{{n}}.gamma", numbers),
            *norm("norm", "norm"),
        ]

    def constants(self, architecture: ViTConfig) -> dict[str, np.ndarray]:
        """Returns mask token, masks of biases and periods; see `Format.constants`."""
        width, quarter = architecture.width, architecture.width // architecture.num_heads // 4
        mask = np.repeat(np.array([1, 0, 1], np.float32), width)
        return {
            "mask_token": np.zeros((1, width), np.float32),
            "rope_embed.periods": np.float32(100)
            ** (np.arange(quarter, dtype=np.float32) / quarter),
            **{f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(architecture.depth)},
        }


def _keys_out(tensor: np.ndarray, shape: Shape) -> np.ndarray:
    """(3 D,) -> (2, H, K)."""
    return np.stack([tensor.reshape(3, *shape[1:])[i] for i in (0, 2)])


def _keys_in(bias: np.ndarray) -> np.ndarray:
    """(2, H, K) -> (3 D,), zero for the keys."""
    return np.stack([bias[0], np.zeros_like(bias[0]), bias[1]]).reshape(-1)


# Bias of queries and values in a file that has one for the keys, which is not used.
_WITHOUT_KEYS = one_to_one(_keys_out, _keys_in)
