"""AIMv2's dual encoder in Hugging Face's transformers (Aimv2Model)."""

from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.weights.transformers import text_config, tower_settings
from vit_jax.models.layers.weights import FitText
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights import aimv2
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import attention_out, linear, norm
from vit_jax.weights.transforms import LEADING_ONE, SEPARATE_QKV

# Defaults of the library. Published configs leave them out.
TEXT: layers.Settings = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "eos_token_id": 49407,
    "qkv_bias": False,
    "mlp_bias": False,
}
# Fields of a text tower, and their only value.
_TEXT_FIELDS: dict[str, Any] = {
    "norm": "rms",
    "gated_mlp": True,
    "qkv_bias": "none",
    "use_bias": False,
}


class TransformersAIMv2CLIP(Format):
    """Dual encoders of AIMv2, whose texts are masked causally as with an attention mask."""

    name = layers.NAME
    architectures = (CLIPConfig,)
    ignored = ("*.position_ids",)

    def holds(self, architecture: CLIPConfig) -> bool:
        """Returns whether the text tower has RMSNorms; see `Format.holds`."""
        return architecture.text.norm == "rms"

    def resize_rule(self, architecture: CLIPConfig) -> str:
        """Returns the model's own rule: the library has none; see `Format.resize_rule`."""
        return getattr(architecture.image, "position_resize", "")

    def settle(self, architecture: CLIPConfig, file: TensorFile) -> CLIPConfig:
        """Returns the architecture: fixed positions are computed for each grid."""
        fixed = architecture.image.position_init == "fixed_sincos"
        return architecture if fixed else super().settle(architecture, file)

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has both towers under the names of the library."""
        names = (
            "vision_model.embeddings.patch_embed.weight",
            "text_model.encoder.layers.0.ffn.gate_proj.weight",
        )
        return all(name in file for name in names)

    def entries(self, architecture: CLIPConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        _check(architecture)
        text, head = architecture.text, "vision_model.head"
        embeddings = "text_model.embeddings"
        keys = (f"{head}.k_proj.weight", f"{head}.v_proj.weight")
        return [
            *aimv2.tower(architecture.image, "image/", "vision_model."),
            Entry("image/query_pool/query", f"{head}.cls_token", LEADING_ONE),
            Entry("image/query_pool/key_value/kernel", keys, SEPARATE_QKV),
            *attention_out("image/query_pool/out", f"{head}.output_proj"),
            Entry("text/token_embed/embedding", f"{embeddings}.token_embedding.weight"),
            Entry(
                "text/positions",
                f"{embeddings}.position_embedding.weight",
                resize=FitText(text.position_resize),
            ),
            *aimv2.stack("text/transformer/blocks", "text_model.encoder.layers", text.depth),
            *norm("text/norm", "text_model.rms_norm", bias=False),
            *linear("image_projection", "visual_projection", bias=False),
            *linear("text_projection", "text_projection", bias=False),
            Entry("logit_scale", "logit_scale"),
        ]

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> CLIPConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        image = tower_settings(config, "vision_config", aimv2.DEFAULTS)
        text = tower_settings(config, "text_config", TEXT)
        for name, settings in (("vision_config", image), ("text_config", text)):
            if settings["qkv_bias"] or settings["mlp_bias"]:
                raise UserError(
                    f"config.json: expected {name} with qkv_bias=False, mlp_bias=False; found "
                    f"{settings['qkv_bias']}, {settings['mlp_bias']}"
                )
        end = text["eos_token_id"]
        return CLIPConfig(
            image=aimv2.aimv2_config(image, pool="query"),
            text=text_config(
                {**text, "layer_norm_eps": text["rms_norm_eps"]},
                end_id=None if end == text["vocab_size"] - 1 else end,
                **_TEXT_FIELDS,
            ),
            embed_dim=config.get("projection_dim", 512),
        )


def _check(config: CLIPConfig) -> None:
    """Refuses what no AIMv2 has."""
    image, text = config.image, config.text
    if not isinstance(image, ViTConfig) or (image.norm, image.pool) != ("rms", "query"):
        raise UserError(
            "the format transformers holds dual encoders with text.norm='rms' as AIMv2: an image "
            f"tower with norm='rms' and pool='query'; found {type(image).__name__} with "
            f"{getattr(image, 'norm', None)!r}, {image.pool!r}"
        )
    aimv2.check_blocks(image, layers.NAME)
    found = {name: getattr(text, name) for name in _TEXT_FIELDS}
    if found != _TEXT_FIELDS or not text.causal or text.pool != "eot":
        raise UserError(
            f"the format transformers holds AIMv2's text tower, {_TEXT_FIELDS}, causal=True, "
            f"pool='eot'; found {found}, causal={text.causal}, pool={text.pool!r}"
        )
