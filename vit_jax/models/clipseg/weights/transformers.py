"""CLIPSeg of Hugging Face's transformers (CLIPSegForImageSegmentation)."""

from vit_jax.errors import UserError
from vit_jax.models.clip.weights import transformers as clip
from vit_jax.models.clipseg.model import CLIPSegConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm
from vit_jax.weights.transforms import ENLARGING

# Defaults of the library for the decoder. Published configs may leave them out.
_DECODER: layers.Settings = {
    "extract_layers": (3, 6, 9),
    "reduce_dim": 64,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 2048,
    "conditional_layer": 0,
    "use_complex_transposed_convolution": False,
}


class TransformersCLIPSeg(Format):
    """CLIPSeg with both towers of CLIP."""

    name = layers.NAME
    architectures = (CLIPSegConfig,)
    ignored = ("*.position_ids",)
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the decoder and the towers under the names of the library."""
        return "decoder.film_mul.weight" in file and "clip.text_projection.weight" in file

    def entries(self, architecture: CLIPSegConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        clip.check_supported(architecture)
        if (pool := architecture.image.pool) != "class":
            raise UserError(
                "the format transformers holds CLIPSeg with a class token: expected "
                f"image.pool='class'; found {pool!r}"
            )
        return [
            *clip.clip_entries(architecture, "clip.", pre_norm="pre_layrnorm"),  # sic
            *_decoder(architecture),
        ]

    def architecture(
        self, file: TensorFile, config: layers.Settings | None
    ) -> CLIPSegConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        layers.check_settings(config)
        if (kind := config.get("model_type")) != "clipseg":
            raise UserError(f"config.json: expected model_type 'clipseg'; found {kind!r}")
        decoder = {**_DECODER, **config}
        return CLIPSegConfig(
            **clip.clip_fields(config, clip.CLIP_IMAGE, clip.CLIP_TEXT),
            layers=tuple(decoder["extract_layers"]),
            reduced_width=decoder["reduce_dim"],
            decoder_heads=decoder["decoder_num_attention_heads"],
            decoder_mlp_dim=decoder["decoder_intermediate_size"],
            condition_block=decoder["conditional_layer"],
            refined=decoder["use_complex_transposed_convolution"],
        )


def _decoder(config: CLIPSegConfig) -> list[Entry]:
    path, stack = "decoder/blocks/block", range(len(config.layers))
    key, output = "decoder.layers.{i}", "decoder.transposed_convolution"
    entries = [
        *linear("decoder/film_scale", "decoder.film_mul"),
        *linear("decoder/film_shift", "decoder.film_add"),
        *linear("decoder/blocks/reduce", "decoder.reduces.{i}", stack),
        *linear(f"{path}/attention/query", f"{key}.self_attn.q_proj", stack),
        *linear(f"{path}/attention/key", f"{key}.self_attn.k_proj", stack),
        *linear(f"{path}/attention/value", f"{key}.self_attn.v_proj", stack),
        *attention_out(f"{path}/attention/out", f"{key}.self_attn.out_proj", stack),
        *norm(f"{path}/norm1", f"{key}.layer_norm1", stack),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.fc1", stack),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.fc2", stack),
        *norm(f"{path}/norm2", f"{key}.layer_norm2", stack),
    ]
    return entries + output_entries(config, output)


def output_entries(config: CLIPSegConfig, key: str) -> list[Entry]:
    """Returns the entries of the convolutions after the blocks.

    Args:
        config: architecture.
        key: name of the convolutions in the file.
    """
    if not config.refined:
        return conv("decoder/output", key, kernel=ENLARGING)
    return [
        *conv("decoder/convolution", f"{key}.0"),
        *conv("decoder/enlarge", f"{key}.2", kernel=ENLARGING),
        *conv("decoder/output", f"{key}.4", kernel=ENLARGING),
    ]
