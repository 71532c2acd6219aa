"""OWL-ViT and OWLv2 of Hugging Face's transformers (OwlViT-, Owlv2ForObjectDetection)."""

from vit_jax.errors import UserError
from vit_jax.models.clip.weights import transformers as clip
from vit_jax.models.owl.model import OwlConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import linear, norm

# Defaults of the library. Published configs leave them out.
_IMAGE = {
    "owlvit": {**clip.CLIP_IMAGE, "image_size": 768},
    "owlv2": {**clip.CLIP_IMAGE, "image_size": 768, "patch_size": 16},
}
_TEXT = {**clip.CLIP_TEXT, "max_position_embeddings": 16}


class TransformersOwl(Format):
    """Detectors: the two towers, the projections of CLIP and the heads."""

    name = layers.NAME
    architectures = (OwlConfig,)
    ignored = ("*.position_ids", "box_bias")
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the box head under the names of the library."""
        return "box_head.dense0.weight" in file and "class_head.logit_shift.weight" in file

    def entries(self, architecture: OwlConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        _check_supported(architecture)
        prefix = "owlv2." if architecture.objectness else "owlvit."
        return [
            *clip.clip_entries(architecture, prefix, pre_norm="pre_layernorm"),
            *norm("merged_norm", "layer_norm"),
            *linear("class_head/projection", "class_head.dense0"),
            *linear("class_head/shift", "class_head.logit_shift"),
            *linear("class_head/scale", "class_head.logit_scale"),
            *_mlp("box_head"),
            *(_mlp("objectness_head") if architecture.objectness else ()),
        ]

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> OwlConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        layers.check_settings(config)
        kind = config.get("model_type")
        if kind not in _IMAGE:
            raise UserError(f"config.json: expected model_type 'owlvit' or 'owlv2'; found {kind!r}")
        return OwlConfig(
            # The largest id is pooled, whatever the end of text in the config.
            **clip.clip_fields(config, _IMAGE[kind], _TEXT, position_resize="cut", end_id=None),
            objectness=kind == "owlv2",
        )


def _check_supported(config: OwlConfig) -> None:
    """Refuses detectors that the library cannot hold."""
    clip.check_supported(config)
    found = (config.image.pool, config.text.width, config.head_activation)
    expected = ("class", config.embed_dim, "gelu")
    if found != expected:
        raise UserError(
            "the format transformers holds detectors with (image.pool, text.width, "
            f"head_activation)={expected}; found {found}"
        )


def _mlp(name: str) -> list[Entry]:
    return [entry for i in range(3) for entry in linear(f"{name}/fc{i + 1}", f"{name}.dense{i}")]
