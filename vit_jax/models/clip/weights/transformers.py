"""CLIP, MetaCLIP 2, SigLIP and SigLIP 2 NaFlex of transformers.

CLIPModel, MetaClip2Model, SiglipModel, Siglip2Model.
"""

import math
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.layers.weights import FitText, ResizePositions
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights.timm import is_naflex
from vit_jax.models.vit.weights.transformers import vit_config
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.timm import mlp
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm, patches
from vit_jax.weights.layers.transformers_flax import FlaxNames
from vit_jax.weights.transforms import FLAT, LEADING_ONE, LINEAR, NO_LEADING_ONE, concatenate

# Defaults of the library. Published configs leave them out.
CLIP_IMAGE: layers.Settings = {
    **layers.BASE,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
CLIP_TEXT: layers.Settings = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
SIGLIP_IMAGE: layers.Settings = {
    **layers.BASE,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
SIGLIP_TEXT: layers.Settings = {
    **SIGLIP_IMAGE,
    "vocab_size": 32000,
    "max_position_embeddings": 64,
}


_PATCHES = "vision_model.embeddings.patch_embedding"


class TransformersCLIP(Format):
    """Dual encoders with a ViT: CLIP, and SigLIP with its attention pooling."""

    name = layers.NAME
    architectures = (CLIPConfig,)
    ignored = ("*.position_ids",)
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has both towers under the names of the library."""
        return _has_towers(file, dimensions=4)

    def holds(self, architecture: CLIPConfig) -> bool:
        """Returns whether a model is neither NaFlex nor AIMv2's; see `Format.holds`."""
        return not is_naflex(architecture.image) and architecture.text.norm == "layer"

    def entries(self, architecture: CLIPConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        check_supported(architecture)
        if architecture.image.pool != "map":
            return clip_entries(architecture, "", pre_norm="pre_layrnorm")  # sic
        return [
            *conv("image/patch_embed", _PATCHES, bias=architecture.image.patch_bias),
            *self._siglip(architecture),
        ]

    def _siglip(self, architecture: CLIPConfig) -> list[Entry]:
        """Entries of a SigLIP without its embedding of patches."""
        return [
            *_image_tower(architecture.image, ""),
            *text_entries(architecture.text, ""),
            *_map_head("image/map_head", "vision_model.head"),
            *linear("text_projection", "text_model.head"),
            Entry("logit_scale", "logit_scale", LEADING_ONE),
            Entry("logit_bias", "logit_bias", LEADING_ONE),
        ]

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> CLIPConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        layers.check_settings(config)
        kind = config.get("model_type")
        if kind == "clip":
            return CLIPConfig(**clip_fields(config, CLIP_IMAGE, CLIP_TEXT))
        if kind == "metaclip_2":
            settings = tower_settings(config, "text_config", {"eos_token_id": 49407})
            end_id = settings["eos_token_id"]  # 2 is an id here, unlike in `end_of_text`
            return CLIPConfig(**clip_fields(config, CLIP_IMAGE, CLIP_TEXT, end_id=end_id))
        if kind == "siglip":
            return _siglip_config(config, tower_settings(config, "vision_config", SIGLIP_IMAGE))
        raise UserError(
            f"config.json: expected model_type 'clip', 'metaclip_2' or 'siglip'; found {kind!r}"
        )


class TransformersNaFlex(TransformersCLIP):
    """SigLIP 2 NaFlex, whose patches enter a linear layer."""

    position_resize = "bilinear_antialias"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has both towers and a linear layer for the patches."""
        return _has_towers(file, dimensions=2)

    def holds(self, architecture: CLIPConfig) -> bool:
        """Returns whether a model is NaFlex; see `Format.holds`."""
        return is_naflex(architecture.image)

    def entries(self, architecture: CLIPConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        check_supported(architecture)
        if architecture.image.pool != "map":
            raise UserError(
                "the format transformers holds NaFlex models with image.pool='map'; found "
                f"{architecture.image.pool!r}"
            )
        return [*patches("image/patch_embed", _PATCHES), *self._siglip(architecture)]

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> CLIPConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        layers.check_settings(config)
        if (kind := config.get("model_type")) != "siglip2":
            raise UserError(f"config.json: expected model_type 'siglip2'; found {kind!r}")
        image = tower_settings(config, "vision_config", {**SIGLIP_IMAGE, "num_patches": 256})
        side = math.isqrt(image["num_patches"])
        image = {**image, "image_size": side * image["patch_size"]}
        return _siglip_config(
            config, image, position_grid=(side, side), position_resize=self.position_resize
        )


class FlaxCLIP(FlaxNames, TransformersCLIP):
    """Flax's CLIP."""


def _has_towers(file: TensorFile, dimensions: int) -> bool:
    """Whether a file has both towers, and an embedding of patches of so many dimensions."""
    image, text = f"{_PATCHES}.weight", "text_model.embeddings.token_embedding.weight"
    return image in file and text in file and len(file.shape(image)) == dimensions


def clip_entries(config: CLIPConfig, prefix: str, *, pre_norm: str) -> list[Entry]:
    """Returns the entries of a CLIP, which detectors contain, too.

    Args:
        config: architecture with a class token.
        prefix: prefix of the names in the file.
        pre_norm: name of the norm before the blocks.
    """
    return [
        *image_entries(config.image, prefix, pre_norm=pre_norm),
        *text_entries(config.text, prefix),
        *linear("image_projection", f"{prefix}visual_projection", bias=False),
        *linear("text_projection", f"{prefix}text_projection", bias=False),
        Entry("logit_scale", f"{prefix}logit_scale"),
    ]


def image_entries(config: ViTConfig, prefix: str, *, pre_norm: str) -> list[Entry]:
    """Returns the entries of CLIP's image tower without its projection.

    Args:
        config: architecture with a class token.
        prefix: prefix of the names in the file.
        pre_norm: name of the norm before the blocks.
    """
    class_token = f"{prefix}vision_model.embeddings.class_embedding"
    return [
        *conv("image/patch_embed", f"{prefix}{_PATCHES}", bias=config.patch_bias),
        *_image_tower(config, prefix),
        Entry("image/class_token", class_token, NO_LEADING_ONE),
        *norm("image/pre_norm", f"{prefix}vision_model.{pre_norm}"),
    ]


def check_supported(config: CLIPConfig) -> None:
    """Refuses models whose tensors have names in the library but are used differently there.

    Args:
        config: architecture to load or to save.

    Raises:
        UserError: the library has no such model.
    """
    image, text = config.image, config.text
    if not isinstance(image, ViTConfig):
        raise UserError(
            "the format transformers holds dual encoders whose image tower is a ViT; found "
            f"{type(image).__name__}"
        )
    found = (image.pool, text.causal, text.pool)
    if found != (("map", False, "last") if image.pool == "map" else ("class", True, "eot")):
        raise UserError(
            "the format transformers holds CLIP (image.pool='class', text.causal=True, "
            "text.pool='eot') and SigLIP ('map', False, 'last'); "
            f"found {found}"
        )
    if image.class_token and not image.prefix_positions:
        raise UserError(
            "the format transformers has a position for CLIP's class token: expected "
            "image.prefix_positions=True; found False"
        )


def _image_tower(config: ViTConfig, prefix: str) -> list[Entry]:
    """Entries of the image tower that all have in common, after its embedding of patches."""
    embeddings = f"{prefix}vision_model.embeddings"
    path, encoder = "image/transformer/blocks", f"{prefix}vision_model.encoder.layers"
    resize = ResizePositions(config.table_grid, config.num_special, config.position_resize)
    return [
        Entry("image/positions", f"{embeddings}.position_embedding.weight", resize=resize),
        *layers.blocks(path, encoder, layers.CLIP, config.depth),
        *norm("image/norm", f"{prefix}vision_model.post_layernorm"),
    ]


def text_entries(text: TextConfig, prefix: str) -> list[Entry]:
    """Returns the entries of a text tower without its projection.

    Args:
        text: architecture.
        prefix: prefix of the names in the file.
    """
    embeddings = f"{prefix}text_model.embeddings"
    path, encoder = "text/transformer/blocks", f"{prefix}text_model.encoder.layers"
    return [
        Entry("text/token_embed/embedding", f"{embeddings}.token_embedding.weight"),
        Entry(
            "text/positions",
            f"{embeddings}.position_embedding.weight",
            resize=FitText(text.position_resize),
        ),
        *layers.blocks(path, encoder, layers.CLIP, text.depth),
        *norm("text/norm", f"{prefix}text_model.final_layer_norm"),
    ]


def _map_head(path: str, key: str) -> list[Entry]:
    """Attention pooling by torch's MultiheadAttention. The model's query is separate."""
    kernels = (f"{path}/query/kernel", f"{path}/key_value/kernel")
    biases = (f"{path}/query/bias", f"{path}/key_value/bias")
    return [
        Entry(f"{path}/probe", f"{key}.probe", LEADING_ONE),
        Entry(kernels, f"{key}.attention.in_proj_weight", concatenate(LINEAR)),
        Entry(biases, f"{key}.attention.in_proj_bias", concatenate(FLAT)),
        *attention_out(f"{path}/out", f"{key}.attention.out_proj"),
        *norm(f"{path}/norm", f"{key}.layernorm"),
        *mlp(f"{path}/mlp", f"{key}.mlp"),
    ]


def tower_settings(
    config: layers.Settings, name: str, defaults: layers.Settings
) -> layers.Settings:
    """Returns the settings of one tower. Those under the second name of old files take precedence.

    Args:
        config: content of `config.json`.
        name: name of the part for the tower.
        defaults: settings that `config` may leave out.
    """
    overrides = config.get(f"{name}_dict") or {}
    return {**defaults, **config.get(name, {}), **overrides}


def text_config(settings: layers.Settings, **changes: Any) -> TextConfig:
    """Returns the architecture of a text tower.

    Args:
        settings: content of `config.json`, or of its part for the tower, with defaults.
        **changes: fields of the architecture that `settings` does not determine.
    """
    return TextConfig(
        vocab_size=settings["vocab_size"],
        context_length=settings["max_position_embeddings"],
        **layers.stack_fields(settings),
        **changes,
    )


def end_of_text(settings: layers.Settings) -> int | None:
    """Returns the id at which a text tower is pooled; None for the largest id of a text.

    Args:
        settings: settings of the text tower with defaults.
    """
    end = settings.get("eos_token_id", 2)
    # 2 stands for the largest id in files from before version 4.31.
    return None if end in (2, settings["vocab_size"] - 1) else end


def image_config(settings: layers.Settings) -> ViTConfig:
    """Returns the architecture of CLIP's image tower.

    Args:
        settings: settings of the tower with defaults.
    """
    return vit_config(settings, pre_norm=True, patch_bias=False, weight_init="clip")


def clip_fields(
    config: layers.Settings,
    image_defaults: layers.Settings,
    text_defaults: layers.Settings,
    **text_changes: Any,
) -> dict[str, Any]:
    """Returns the fields of a CLIP, which detectors contain, too.

    Args:
        config: content of `config.json`.
        image_defaults: settings of the image tower that `config` may leave out.
        text_defaults: settings of the text tower that `config` may leave out.
        **text_changes: fields of the text tower that settings do not determine, or that precede.

    Returns:
        Field of `CLIPConfig` -> value.
    """
    image = tower_settings(config, "vision_config", image_defaults)
    text = tower_settings(config, "text_config", text_defaults)
    return {
        "image": image_config(image),
        "text": text_config(text, **{"end_id": end_of_text(text), **text_changes}),
        "embed_dim": config.get("projection_dim", 512),
    }


def _siglip_config(
    config: layers.Settings, image: layers.Settings, **image_changes: Any
) -> CLIPConfig:
    """A SigLIP from the content of `config.json` and from its settings of the image tower."""
    text = tower_settings(config, "text_config", SIGLIP_TEXT)
    return CLIPConfig(
        image=vit_config(
            image, class_token=False, pool="map", weight_init="xavier", **image_changes
        ),
        text=text_config(text, causal=False, pool="last", weight_init="xavier"),
        embed_dim=text.get("projection_size", text["hidden_size"]),
        image_projection=False,
        text_projection_bias=True,
        init_logit_scale=math.log(10.0),
        init_logit_bias=-10.0,
    )
