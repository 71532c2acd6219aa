"""Grounding DINO of Hugging Face's transformers (GroundingDinoForObjectDetection)."""

from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.bert.model import BertConfig
from vit_jax.models.bert.weights import bert_entries, bert_fields
from vit_jax.models.grounding_dino.model import GroundingDinoConfig
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.weights import stage_entries, swin_fields
from vit_jax.models.swin.zoo import BACKBONE
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm

_BACKBONE = "model.backbone.conv_encoder.model."
# Fields by the keys of `config.json`, and the defaults of the library.
_FIELDS = {
    "width": ("d_model", 256),
    "num_levels": ("num_feature_levels", 4),
    "num_queries": ("num_queries", 900),
    "encoder_depth": ("encoder_layers", 6),
    "decoder_depth": ("decoder_layers", 6),
    "num_heads": ("encoder_attention_heads", 8),
    "encoder_mlp_dim": ("encoder_ffn_dim", 2048),
    "decoder_mlp_dim": ("decoder_ffn_dim", 2048),
    "encoder_samples": ("encoder_n_points", 4),
    "decoder_samples": ("decoder_n_points", 4),
    "position_temperature": ("positional_embedding_temperature", 20),
    "norm_epsilon": ("layer_norm_eps", 1e-5),
    "fusion_drop_path": ("fusion_droppath", 0.1),
}
# Settings with one value here, which is the default of the library.
_FIXED = {
    "activation_function": "relu",
    "decoder_bbox_embed_share": True,
    "embedding_init_target": True,
    "position_embedding_type": "sine",
    "query_dim": 4,
    "two_stage": True,
    "two_stage_bbox_embed_share": False,
}


class TransformersGroundingDino(Format):
    """Detectors with a Swin and a BERT. Heads of boxes are shared by all layers of the decoder."""

    name = layers.NAME
    architectures = (GroundingDinoConfig,)
    ignored = (
        "*.position_ids",
        "*.relative_position_index",
        f"{_BACKBONE}layernorm.*",
        f"{_BACKBONE}embeddings.mask_token",
        "model.text_backbone.pooler.*",
        # Copies of the first head of boxes.
        "bbox_embed.[1-9]*",
        "model.decoder.bbox_embed.*",
    )
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the fusion of image and text under the library's names."""
        return "model.encoder.layers.0.fusion_layer.vision_param" in file

    def view(self, file: TensorFile, architecture: GroundingDinoConfig) -> TensorFile:
        """Returns the file under the names of published files; see `Format.view`."""
        del architecture

        def rename(key: str) -> str:
            if not key.startswith(_BACKBONE):
                return key
            name = key.removeprefix(_BACKBONE).removeprefix("swin.")
            return _BACKBONE + layers.published_name(name, layers.SWIN)

        return file.renamed(rename)

    def entries(self, architecture: GroundingDinoConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config = architecture
        if not config.image.fixed_windows or config.image.final_norm:
            raise UserError(
                "the format transformers holds detectors with image.fixed_windows=True and "
                f"image.final_norm=False; found {config.image.fixed_windows} and "
                f"{config.image.final_norm}"
            )
        return [
            *stage_entries(config.image, "image/", _BACKBONE),
            *_level_entries(config),
            Entry("level_embed", "model.level_embed"),
            *bert_entries(config.text, "text/", "model.text_backbone."),
            *linear("text_projection", "model.text_projection"),
            *_encoder_entries(range(config.encoder_depth)),
            *linear("selection/projection", "model.enc_output"),
            *norm("selection/norm", "model.enc_output_norm"),
            *_box_head("selection/box_head", "model.encoder_output_bbox_embed"),
            *_decoder_entries(range(config.decoder_depth)),
        ]

    def architecture(
        self, file: TensorFile, config: layers.Settings | None
    ) -> GroundingDinoConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        if (kind := config.get("model_type")) != "grounding-dino":
            raise UserError(f"config.json: expected model_type 'grounding-dino'; found {kind!r}")
        for key, expected in _FIXED.items():
            if (found := config.get(key, expected)) != expected:
                raise UserError(f"config.json: expected {key}={expected!r}; found {found!r}")
        fields: dict[str, Any] = {
            field: config.get(key, default) for field, (key, default) in _FIELDS.items()
        }
        if (heads := config.get("decoder_attention_heads", 8)) != fields["num_heads"]:
            raise UserError(
                "config.json: expected decoder_attention_heads="
                f"{fields['num_heads']}, as encoder_attention_heads; found {heads}"
            )
        text = bert_fields(config.get("text_config") or {})
        length = min(config.get("max_text_len", 256), text["num_positions"])
        return GroundingDinoConfig(
            image=SwinConfig(**swin_fields(_backbone(config)) | BACKBONE),
            text=BertConfig(**text, context_length=length),
            **fields,
        )


def _backbone(config: layers.Settings) -> layers.Settings:
    """Settings of the backbone, of which all stages except the first are levels."""
    backbone = config.get("backbone_config") or {}
    if (kind := backbone.get("model_type", "swin")) != "swin":
        raise UserError(f"config.json: expected a backbone of model_type 'swin'; found {kind!r}")
    depths = swin_fields(backbone)["depths"]
    expected = [f"stage{i + 1}" for i in range(1, len(depths))]
    if (found := backbone.get("out_features", expected)) != expected:
        raise UserError(f"config.json: expected out_features={expected}; found {found}")
    return backbone


def _level_entries(config: GroundingDinoConfig) -> list[Entry]:
    entries = []
    for i, stage in enumerate(config.stages):
        key = f"{_BACKBONE}hidden_states_norms.stage{stage + 1}"
        entries += norm(f"levels/stage_norm{i}", key)
    for i in range(config.num_levels):
        entries += conv(f"levels/conv{i}", f"model.input_proj_vision.{i}.0")
        entries += norm(f"levels/norm{i}", f"model.input_proj_vision.{i}.1")
    return entries


def _encoder_entries(stack: range) -> list[Entry]:
    path, key = "encoder/blocks", "model.encoder.layers.{i}"
    fusion, text, image = (f"{key}.{n}_layer" for n in ("fusion", "text_enhancer", "deformable"))
    entries = []
    for ours, theirs in (("image", "vision"), ("text", "text")):
        part, attention = f"{path}/fusion/{ours}", f"{fusion}.attn"
        entries += [
            *norm(f"{part}/norm", f"{fusion}.layer_norm_{theirs}", stack),
            *linear(f"{part}/key", f"{attention}.{theirs}_proj", stack),
            *linear(f"{part}/value", f"{attention}.values_{theirs}_proj", stack),
            *attention_out(f"{part}/out", f"{attention}.out_{theirs}_proj", stack),
            Entry(f"{part}/scale/gamma", f"{fusion}.{theirs}_param", layers=stack),
        ]
    return [
        *entries,
        *_attention(f"{path}/text/attention", f"{text}.self_attn", stack),
        *norm(f"{path}/text/norm1", f"{text}.layer_norm_before", stack),
        *_mlp(f"{path}/text/mlp", text, stack),
        *norm(f"{path}/text/norm2", f"{text}.layer_norm_after", stack),
        *_deformable(f"{path}/attention", f"{image}.self_attn", stack),
        *norm(f"{path}/norm1", f"{image}.self_attn_layer_norm", stack),
        *_mlp(f"{path}/mlp", image, stack),
        *norm(f"{path}/norm2", f"{image}.final_layer_norm", stack),
    ]


def _decoder_entries(stack: range) -> list[Entry]:
    path, key = "decoder/blocks", "model.decoder.layers.{i}"
    return [
        Entry("decoder/queries", "model.query_position_embeddings.weight"),
        *linear("decoder/position1", "model.decoder.reference_points_head.layers.0"),
        *linear("decoder/position2", "model.decoder.reference_points_head.layers.1"),
        *_box_head("decoder/box_head", "bbox_embed.0"),
        *norm("decoder/norm", "model.decoder.layer_norm"),
        *_attention(f"{path}/self_attention", f"{key}.self_attn", stack),
        *norm(f"{path}/norm1", f"{key}.self_attn_layer_norm", stack),
        *_attention(f"{path}/text_attention", f"{key}.encoder_attn_text", stack),
        *norm(f"{path}/norm2", f"{key}.encoder_attn_text_layer_norm", stack),
        *_deformable(f"{path}/image_attention", f"{key}.encoder_attn", stack),
        *norm(f"{path}/norm3", f"{key}.encoder_attn_layer_norm", stack),
        *_mlp(f"{path}/mlp", key, stack),
        *norm(f"{path}/norm4", f"{key}.final_layer_norm", stack),
    ]


def _attention(path: str, key: str, stack: range) -> list[Entry]:
    entries = attention_out(f"{path}/out", f"{key}.out_proj", stack)
    for name in ("query", "key", "value"):
        entries += linear(f"{path}/{name}", f"{key}.{name}", stack)
    return entries


def _deformable(path: str, key: str, stack: range) -> list[Entry]:
    return [
        *linear(f"{path}/offsets", f"{key}.sampling_offsets", stack),
        *linear(f"{path}/weights", f"{key}.attention_weights", stack),
        *linear(f"{path}/value", f"{key}.value_proj", stack),
        *attention_out(f"{path}/out", f"{key}.output_proj", stack),
    ]


def _mlp(path: str, key: str, stack: range) -> list[Entry]:
    return [e for n in ("fc1", "fc2") for e in linear(f"{path}/{n}", f"{key}.{n}", stack)]


def _box_head(path: str, key: str) -> list[Entry]:
    return [e for i in range(3) for e in linear(f"{path}/fc{i + 1}", f"{key}.layers.{i}")]


FORMATS: tuple[Format, ...] = (TransformersGroundingDino(),)
