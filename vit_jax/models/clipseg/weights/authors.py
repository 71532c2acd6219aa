"""CLIPSeg of its authors (github.com/timojl/clipseg, models/clipseg.py).

The state dict of `CLIPDensePredT` has CLIP's towers under `clip_model.`, the image tower again
under `model.`, and a layer that is not used. The published files, as rd64-uni.pth, leave out CLIP.
"""

import dataclasses

from vit_jax.errors import UserError
from vit_jax.models.clip.weights.openai import SETTINGS, OpenAIClip
from vit_jax.models.clipseg.model import CLIPSegConfig
from vit_jax.models.clipseg.weights.transformers import output_entries
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.torch import attention_out, linear, norm
from vit_jax.weights.transforms import FLAT, LINEAR, concatenate

_TOWERS = "clip_model."


class AuthorsCLIPSeg(Format):
    """CLIPSeg with both towers of OpenAI's CLIP."""

    name = "clipseg"
    architectures = (CLIPSegConfig,)
    ignored = ("model.*", "reduce.*", *(_TOWERS + name for name in SETTINGS))
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the decoder under the names of the authors."""
        return "film_mul.weight" in file and "reduces.0.weight" in file

    def view(self, file: TensorFile, architecture: CLIPSegConfig) -> TensorFile:
        """Refuses a decoder without its towers; see `Format.view`."""
        del architecture
        if any(key.startswith(_TOWERS) for key in file):
            return file
        raise UserError(
            f"{file} holds the decoder of CLIPSeg alone: expected the state dict of the whole "
            f"model, with the tensors of CLIP's ViT-B/16 under {_TOWERS}*"
        )

    def entries(self, architecture: CLIPSegConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        towers = [
            dataclasses.replace(entry, keys=tuple(_TOWERS + key for key in entry.keys))
            for entry in OpenAIClip().entries(architecture)
        ]
        return [*towers, *_decoder(architecture)]


def _decoder(config: CLIPSegConfig) -> list[Entry]:
    path, stack = "decoder/blocks/block", range(len(config.layers))
    attention, key = f"{path}/attention", "blocks.{i}"
    parts = ("query", "key", "value")
    kernels, biases = (
        tuple(f"{attention}/{part}/{name}" for part in parts) for name in ("kernel", "bias")
    )
    fused = f"{key}.self_attn.in_proj"
    return [
        *linear("decoder/film_scale", "film_mul"),
        *linear("decoder/film_shift", "film_add"),
        *linear("decoder/blocks/reduce", "reduces.{i}", stack),
        Entry(kernels, f"{fused}_weight", concatenate(LINEAR), stack),
        Entry(biases, f"{fused}_bias", concatenate(FLAT), stack),
        *attention_out(f"{attention}/out", f"{key}.self_attn.out_proj", stack),
        *norm(f"{path}/norm1", f"{key}.norm1", stack),
        *linear(f"{path}/mlp/fc1", f"{key}.linear1", stack),
        *linear(f"{path}/mlp/fc2", f"{key}.linear2", stack),
        *norm(f"{path}/norm2", f"{key}.norm2", stack),
        *output_entries(config, "trans_conv"),
    ]
