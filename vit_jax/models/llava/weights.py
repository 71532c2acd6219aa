"""LLaVA of Hugging Face's transformers (LlavaForConditionalGeneration), without language model."""

import re
from typing import Any

from vit_jax.errors import UserError, lookup
from vit_jax.models.clip.weights import transformers as clip
from vit_jax.models.llava.model import LlavaConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import linear

TOWER, PROJECTOR = "vision_tower.vision_model.", "multi_modal_projector."
# Names in memory since version 4.52, and of towers since version 5.
_IN_MEMORY = re.compile(r"^model\.(?=(vision_tower|multi_modal_projector|language_model)\.)")
_BARE_TOWER = re.compile(r"^vision_tower\.(?!vision_model\.)")
# Defaults of the library. Published configs leave them out.
_IMAGE: layers.Settings = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 336,
    "patch_size": 14,
}
_LANGUAGE_WIDTH = 4096


class TransformersLlava(Format):
    """The tower and the projector. Tensors of the language model stay unread."""

    name = layers.NAME
    architectures = (LlavaConfig,)
    ignored = ("*.position_ids",)
    unrelated = ("language_model.*", "lm_head.*")
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has a tower and a projector under the names of the library."""
        names = map(_published, file)
        wanted = {f"{TOWER}embeddings.class_embedding", f"{PROJECTOR}linear_2.weight"}
        return len(wanted & set(names)) == len(wanted)

    def view(self, file: TensorFile, architecture: LlavaConfig) -> TensorFile:
        """Returns the file under the names of published files; see `Format.view`."""
        del architecture
        return file.renamed(_published)

    def entries(self, architecture: LlavaConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        prefix = TOWER.removesuffix("vision_model.")
        return [
            *clip.image_entries(architecture.image, prefix, pre_norm="pre_layrnorm"),
            *linear("projector/fc1", f"{PROJECTOR}linear_1"),
            *linear("projector/fc2", f"{PROJECTOR}linear_2"),
        ]

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> LlavaConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        image: dict[str, Any] = {**clip.CLIP_IMAGE, **_IMAGE, **config.get("vision_config", {})}
        for key, found, expected in (
            ("model_type", config.get("model_type"), "llava"),
            (
                "vision_config.model_type",
                image.get("model_type", "clip_vision_model"),
                "clip_vision_model",
            ),
            ("multimodal_projector_bias", config.get("multimodal_projector_bias", True), True),
        ):
            if found != expected:
                raise UserError(f"config.json: expected {key}={expected!r}; found {found!r}")
        activation = config.get("projector_hidden_act", "gelu")
        strategy = config.get("vision_feature_select_strategy", "default")
        strategies = {"default": False, "full": True}
        return LlavaConfig(
            image=clip.image_config(image),
            width=config.get("text_config", {}).get("hidden_size", _LANGUAGE_WIDTH),
            feature_layer=_feature_layer(config.get("vision_feature_layer", -2)),
            class_token=lookup(strategies, strategy, "vision_feature_select_strategy"),
            activation=lookup(layers.ACTIVATIONS, activation, "projector_hidden_act"),
        )


FORMATS: tuple[Format, ...] = (TransformersLlava(),)


def _feature_layer(stated: Any) -> int:
    """The index of a block from that of hidden states, which start with the embeddings."""
    if not isinstance(stated, int) or stated == 0:
        raise UserError(
            "config.json: expected the number of one block as vision_feature_layer; found "
            f"{stated!r}"
        )
    return stated - 1 if stated > 0 else stated


def _published(key: str) -> str:
    """The name in published files of a name in memory."""
    return _BARE_TOWER.sub(TOWER, _IN_MEMORY.sub("", key))
