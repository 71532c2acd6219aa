"""Text towers of Hugging Face's transformers (CLIPTextModel, CLIPTextModelWithProjection)."""

from vit_jax.errors import UserError
from vit_jax.models.clip.weights import transformers as clip
from vit_jax.models.clip_text.model import CLIPTextConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import linear
from vit_jax.weights.layers.transformers_flax import FlaxNames

_PREFIX, _TOKENS = "text_model.", "embeddings.token_embedding.weight"
_PROJECTION = "text_projection.weight"


class TransformersCLIPText(Format):
    """A text tower with or without its projection."""

    name = layers.NAME
    architectures = (CLIPTextConfig,)
    ignored = ("*.position_ids",)

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the text tower of CLIP and no other part of a model."""
        own = (_PREFIX, "embeddings.", "encoder.", "final_layer_norm.", _PROJECTION)
        has_tower = f"{_PREFIX}{_TOKENS}" in file or _TOKENS in file
        # SigLIP's text tower has a head under the same prefix.
        return has_tower and all(k.startswith(own) and ".head." not in k for k in file)

    def view(self, file: TensorFile, architecture: CLIPTextConfig) -> TensorFile:
        """Returns the file with the prefix of published files, which version 5 leaves out."""
        del architecture
        if f"{_PREFIX}{_TOKENS}" in file:
            return file
        return file.renamed(lambda key: key if key == _PROJECTION else f"{_PREFIX}{key}")

    def entries(self, architecture: CLIPTextConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        text = architecture.text
        if (found := (text.causal, text.pool)) != (True, "eot"):
            raise UserError(
                "the format transformers holds text towers with causal=True and pool='eot'; found "
                f"{found}"
            )
        entries = clip.text_entries(text, "")
        if architecture.embed_dim:
            entries += linear("text_projection", "text_projection", bias=False)
        return entries

    def architecture(
        self, file: TensorFile, config: layers.Settings | None
    ) -> CLIPTextConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        if config is None:
            return None
        if (kind := config.get("model_type")) != "clip_text_model":
            raise UserError(f"config.json: expected model_type 'clip_text_model'; found {kind!r}")
        settings = {**clip.CLIP_TEXT, **config}
        text = clip.text_config(settings, end_id=clip.end_of_text(settings))
        embed_dim = file.shape(_PROJECTION)[0] if _PROJECTION in file else 0
        return CLIPTextConfig(text=text, embed_dim=embed_dim)


class FlaxCLIPText(FlaxNames, TransformersCLIPText):
    """Flax's text tower of CLIP."""


FORMATS: tuple[Format, ...] = (TransformersCLIPText(), FlaxCLIPText())
