"""LLaVA without its language model.

Of Hugging Face's transformers (LlavaForConditionalGeneration), and of the authors. The names of the
authors' files are those of their code and of the scripts that convert them.
"""

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
AUTHORS_TOWER, AUTHORS_PROJECTOR = "model.vision_tower.vision_tower.", "model.mm_projector."
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
        return _entries(architecture, prefix, f"{PROJECTOR}linear_1", f"{PROJECTOR}linear_2")

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


class AuthorsLlava(Format):
    """The same under the authors' names. Files may lack the tower, which they take from CLIP's."""

    name = "llava"
    architectures = (LlavaConfig,)
    ignored = ("*.position_ids",)
    unrelated = ("model.layers.*", "model.embed_tokens.*", "model.norm.*", "lm_head.*")
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has a projector under the authors' name."""
        return f"{AUTHORS_PROJECTOR}2.weight" in file

    def view(self, file: TensorFile, architecture: LlavaConfig) -> TensorFile:
        """Refuses a file without a tower; see `Format.view`."""
        del architecture
        if not any(key.startswith(AUTHORS_TOWER) for key in file):
            raise UserError(
                f"{file}: expected a tower, {AUTHORS_TOWER}*; found a projector alone. Folders "
                "of transformers (llava-hf) have both"
            )
        return file

    def entries(self, architecture: LlavaConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        first, second = (f"{AUTHORS_PROJECTOR}{i}" for i in (0, 2))
        return _entries(architecture, AUTHORS_TOWER, first, second)


FORMATS: tuple[Format, ...] = (TransformersLlava(), AuthorsLlava())


def _entries(config: LlavaConfig, tower: str, first: str, second: str) -> list[Entry]:
    """The entries, by the prefix of the tower and the names of the projector's layers."""
    return [
        *clip.image_entries(config.image, tower, pre_norm="pre_layrnorm"),
        *linear("projector/fc1", first),
        *linear("projector/fc2", second),
    ]


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
