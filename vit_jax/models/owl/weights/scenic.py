"""OWL-ViT and OWLv2 of scenic (projects/owl_vit), checkpoints of Flax.

The names are those that the conversion scripts of transformers 4 read. The checkpoints lack the
projection of the image tower, which detection does not use: it is zero, so that `encode_image`
gives zeros. The activation of the heads is the tanh form of GELU, Flax's default.
"""

import dataclasses
import re

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.layers.weights import FitText, ResizePositions
from vit_jax.models.owl.model import OwlConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.flax import linear, norm
from vit_jax.weights.transforms import FLAX_QKV, FLAX_QKV_BIAS, NO_LEADING_ONE

_CLIP = "backbone/clip"
_PROJECTION, _SCALE = f"{_CLIP}/visual/proj/kernel", f"{_CLIP}/logit_scale"


class ScenicOwl(Format):
    """Detectors with both towers of CLIP."""

    name = "scenic"
    architectures = (OwlConfig,)
    # Parameters of early versions of the class head.
    ignored = ("class_head/padding", "class_head/padding_bias")
    position_resize = "bilinear_corners"
    container = "msgpack"
    root = "params"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the merged class token and the box head."""
        return "backbone/merged_class_token/scale" in file and "obj_box_head/Dense_0/kernel" in file

    def view(self, file: TensorFile, architecture: OwlConfig) -> TensorFile:
        """Returns the file under the names of the newer checkpoints; see `Format.view`."""
        early = any(key.endswith("/ln_2/scale") for key in file)

        def rename(key: str) -> str:
            key = re.sub(r"/resblocks_(\d+)/", r"/resblocks.\1/", key)
            return key.replace("/ln_1/", "/ln_0/").replace("/ln_2/", "/ln_1/") if early else key

        file = file.renamed(rename)
        if _PROJECTION not in file:
            shape = architecture.image.width, architecture.embed_dim
            file = file.with_tensor(_PROJECTION, np.zeros(shape, np.float32))
        if _SCALE not in file:
            file = file.with_tensor(_SCALE, np.full((), architecture.init_logit_scale, "f4"))
        return file

    def entries(self, architecture: OwlConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        image, text = architecture.image, architecture.text
        found = (image.pool, image.patch_bias, architecture.head_activation)
        if found != ("class", False, "gelu_tanh"):
            raise UserError(
                "the format scenic holds detectors with (image.pool, image.patch_bias, "
                f"head_activation)=('class', False, 'gelu_tanh'); found {found}"
            )
        resize = ResizePositions(image.table_grid, image.num_special, image.position_resize)
        fit = FitText(text.position_resize)
        return [
            Entry("image/patch_embed/kernel", f"{_CLIP}/visual/conv1/kernel"),
            Entry("image/class_token", f"{_CLIP}/visual/class_embedding", NO_LEADING_ONE),
            Entry("image/positions", f"{_CLIP}/visual/positional_embedding", resize=resize),
            *norm("image/pre_norm", f"{_CLIP}/visual/ln_pre"),
            *_blocks("image", f"{_CLIP}/visual", image.depth),
            *norm("image/norm", f"{_CLIP}/visual/ln_post"),
            Entry("image_projection/kernel", _PROJECTION),
            Entry("text/token_embed/embedding", f"{_CLIP}/text/token_embedding/embedding"),
            Entry("text/positions", f"{_CLIP}/text/positional_embedding", resize=fit),
            *_blocks("text", f"{_CLIP}/text", text.depth),
            *norm("text/norm", f"{_CLIP}/text/ln_final"),
            Entry("text_projection/kernel", f"{_CLIP}/text/text_projection/kernel"),
            Entry("logit_scale", _SCALE),
            *norm("merged_norm", "backbone/merged_class_token"),
            *linear("class_head/projection", "class_head/Dense_0"),
            *linear("class_head/shift", "class_head/logit_shift"),
            *linear("class_head/scale", "class_head/logit_scale"),
            *_mlp("box_head", "obj_box_head"),
            *(_mlp("objectness_head", "objectness_head") if architecture.objectness else ()),
        ]

    def settle(self, architecture: OwlConfig, file: TensorFile) -> OwlConfig:
        """Returns the architecture with the activation of the heads; see `Format.settle`."""
        settled = super().settle(architecture, file)
        return dataclasses.replace(settled, head_activation="gelu_tanh")


def _blocks(path: str, key: str, depth: int) -> list[Entry]:
    path, key = f"{path}/transformer/blocks", f"{key}/transformer/resblocks.{{i}}"
    layers = range(depth)
    kernels, biases = (
        tuple(f"{key}/attn/{name}/{part}" for name in ("query", "key", "value"))
        for part in ("kernel", "bias")
    )
    return [
        *norm(f"{path}/norm1", f"{key}/ln_0", layers),
        Entry(f"{path}/attention/qkv/kernel", kernels, FLAX_QKV, layers),
        Entry(f"{path}/attention/qkv/bias", biases, FLAX_QKV_BIAS, layers),
        *linear(f"{path}/attention/out", f"{key}/attn/out", layers),
        *norm(f"{path}/norm2", f"{key}/ln_1", layers),
        *linear(f"{path}/mlp/fc1", f"{key}/mlp/c_fc", layers),
        *linear(f"{path}/mlp/fc2", f"{key}/mlp/c_proj", layers),
    ]


def _mlp(path: str, key: str) -> list[Entry]:
    return [entry for i in range(3) for entry in linear(f"{path}/fc{i + 1}", f"{key}/Dense_{i}")]
