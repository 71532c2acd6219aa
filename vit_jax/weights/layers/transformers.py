"""Blocks and settings of models of Hugging Face's transformers.

Names are those of published files. Since version 5 the modules have other names in memory, which
`save_pretrained` translates back. Files with the names in memory are understood, too.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.errors import UserError, lookup
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.layers.torch import attention_out, fused_gate, linear, norm
from vit_jax.weights.transforms import SEPARATE_QKV, SEPARATE_QKV_BIAS

NAME = "transformers"
HEADS = ("classifier.*", "cls_classifier.*", "distillation_classifier.*")
Settings = Mapping[str, Any]

# Activation functions by their name in `config.json`.
ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Defaults of the library's vision transformers. Published configs leave them out.
BASE: Settings = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
}


@dataclasses.dataclass(frozen=True)
class BlockNames:
    """Names of the parts of a transformer block. Query, key and value are separate.

    Attributes:
        norm1: norm before the attention.
        qkv: query, key and value projections.
        out: output projection of the attention.
        norm2: norm before the MLP.
        fc1: first layer of the MLP.
        fc2: second layer of the MLP.
        gate: gate of a gated MLP; None if `fc1` contains it.
    """

    norm1: str
    qkv: tuple[str, str, str]
    out: str
    norm2: str
    fc1: str
    fc2: str
    gate: str | None = None


CLIP = BlockNames(
    norm1="layer_norm1",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    norm2="layer_norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)
VIT = BlockNames(
    norm1="layernorm_before",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    out="attention.output.dense",
    norm2="layernorm_after",
    fc1="intermediate.dense",
    fc2="output.dense",
)
DINOV2 = dataclasses.replace(VIT, norm1="norm1", norm2="norm2", fc1="mlp.fc1", fc2="mlp.fc2")
DINOV2_GIANT = dataclasses.replace(DINOV2, fc1="mlp.weights_in", fc2="mlp.weights_out")
DINOV3 = BlockNames(
    norm1="norm1",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    out="attention.o_proj",
    norm2="norm2",
    fc1="mlp.up_proj",
    fc2="mlp.down_proj",
    gate="mlp.gate_proj",
)
AIMV2 = BlockNames(
    norm1="rms_norm1",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    out="attention.out_proj",
    norm2="rms_norm2",
    fc1="ffn.up_proj",
    fc2="ffn.down_proj",
    gate="ffn.gate_proj",
)
SWIN = dataclasses.replace(
    VIT, qkv=("attention.self.query", "attention.self.key", "attention.self.value")
)
# Names in memory since version 5 of all these except CLIP.
IN_MEMORY = dataclasses.replace(
    VIT,
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    out="attention.o_proj",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)
# Factors of the LayerScales of a block.
LAYER_SCALES = "layer_scale{n}.lambda1"
# First parts of the names of a tower, after the prefix.
_TOWER = ("embeddings.", "encoder.", "layernorm.")


def blocks(
    path: str,
    key: str,
    names: BlockNames,
    depth: int,
    *,
    norm_bias: bool = True,
    gated_mlp: bool = False,
    qkv_bias: str = "qkv",
    use_bias: bool = True,
) -> list[Entry]:
    """Returns the entries of a stack of pre-norm blocks.

    Args:
        path: path of the stacked blocks in the model.
        key: name of the blocks in the file, without the number.
        names: names of the parts.
        depth: number of blocks.
        norm_bias: whether the norms have biases.
        gated_mlp: whether the MLPs are gated.
        qkv_bias: which of queries, keys and values have a bias: "qkv", "qv" or "none".
        use_bias: whether the other linear layers have biases.
    """
    key, layers = f"{key}.{{i}}", range(depth)
    qkv = f"{path}/attention/qkv"
    weights = tuple(f"{key}.{name}.weight" for name in names.qkv)
    biases = tuple(f"{key}.{name}.bias" for name in names.qkv)
    entries = [
        *norm(f"{path}/norm1", f"{key}.{names.norm1}", layers, bias=norm_bias),
        Entry(f"{qkv}/kernel", weights, SEPARATE_QKV, layers),
        *attention_out(f"{path}/attention/out", f"{key}.{names.out}", layers, bias=use_bias),
        *norm(f"{path}/norm2", f"{key}.{names.norm2}", layers, bias=norm_bias),
        *linear(f"{path}/mlp/fc2", f"{key}.{names.fc2}", layers, bias=use_bias),
    ]
    if qkv_bias == "qkv":
        entries.append(Entry(f"{qkv}/bias", biases, SEPARATE_QKV_BIAS, layers))
    elif qkv_bias == "qv":
        pair = (biases[0], biases[2])
        entries.append(Entry(f"{path}/attention/qv_bias", pair, SEPARATE_QKV_BIAS, layers))
    if gated_mlp and names.gate is None:
        return entries + fused_gate(f"{path}/mlp", f"{key}.{names.fc1}", layers)
    entries += linear(f"{path}/mlp/fc1", f"{key}.{names.fc1}", layers, bias=use_bias)
    if gated_mlp:
        entries += linear(f"{path}/mlp/gate", f"{key}.{names.gate}", layers, bias=use_bias)
    return entries


def published_names(
    file: TensorFile, names: BlockNames, prefixes: Sequence[str], prefix: str
) -> TensorFile:
    """Returns a file of a tower under the names of published files.

    Args:
        file: opened weight file, with names of published files or names in memory.
        names: names of the parts of a block in published files.
        prefixes: prefixes that the names of the tower may have.
        prefix: prefix of the names of the tower in the result.
    """

    def rename(key: str) -> str:
        key = re.sub(r"(?<!encoder\.)\blayers\.", "encoder.layer.", key)
        # `save_pretrained` of version 5 writes the decoder of ViTMAE under this name.
        key = key.replace("decoder_encoder.layer.", "decoder_layers.")
        key = published_name(key, names)
        for found in prefixes:
            key = key.removeprefix(found)
        return f"{prefix}{key}" if key.startswith(_TOWER) else key

    return file.renamed(rename)


def published_name(key: str, names: BlockNames) -> str:
    """Returns the name in published files of a part of a block.

    Args:
        key: name of a tensor in a published file or in memory.
        names: names of the parts of a block in published files.
    """
    published = (*names.qkv, names.out, names.fc1, names.fc2)
    in_memory = (*IN_MEMORY.qkv, IN_MEMORY.out, IN_MEMORY.fc1, IN_MEMORY.fc2)
    for old, new in zip(in_memory, published, strict=True):
        key = key.replace(f".{old}.", f".{new}.")
    return key.replace("attention.relative_position_bias.", "attention.self.")


def has_patch_embedding(file: TensorFile, prefixes: Sequence[str]) -> bool:
    """Returns whether a file has the patch embedding of a tower.

    Args:
        file: opened weight file.
        prefixes: prefixes that the names of the tower may have.
    """
    key = "embeddings.patch_embeddings.projection.weight"
    return any(f"{prefix}{key}" in file for prefix in ("", *prefixes))


def stack_fields(settings: Settings) -> dict[str, Any]:
    """Returns fields of an architecture that image and text towers have in common.

    Args:
        settings: content of a `config.json`, or of its part for a tower, with defaults.
    """
    return {
        "width": settings["hidden_size"],
        "depth": settings["num_hidden_layers"],
        "num_heads": settings["num_attention_heads"],
        "mlp_dim": settings["intermediate_size"],
        "activation": activation(settings),
        "norm_epsilon": settings["layer_norm_eps"],
    }


def image_size(settings: Settings) -> int | tuple[int, int]:
    """Returns the size of the images, px: the side of a square, or height and width."""
    size = settings["image_size"]
    return size if isinstance(size, int) else (size[0], size[1])


def activation(settings: Settings) -> str:
    """Returns the activation function of the MLPs.

    Raises:
        UserError: an activation that is not available here.
    """
    return lookup(ACTIVATIONS, settings["hidden_act"], "hidden_act")


def check_settings(config: Settings) -> None:
    """Checks the settings of `config.json` that change a model without changing its sizes.

    Raises:
        UserError: a setting that is not available here.
    """
    if config.get("qkv_bias", True) is not True:
        raise UserError(f"config.json: expected qkv_bias=True; found {config['qkv_bias']!r}")


def num_classes(file: TensorFile, config: Settings) -> int:
    """Returns the number of outputs of the classification head in a file; 0 without a head.

    Args:
        file: opened weight file.
        config: content of the `config.json`.

    Raises:
        UserError: the labels of `config.json` have another number.
    """
    for key in ("classifier.bias", "cls_classifier.bias"):
        if key in file:
            found, labels = file.shape(key)[0], config.get("id2label")
            if labels is not None and len(labels) != found:
                raise UserError(
                    f"config.json: expected id2label with the {found} classes of {key}; found "
                    f"{len(labels)}"
                )
            return found
    return 0
