"""Entries of the layers of flax.linen, as JAX codebases of Google name them.

Names are nested with "/". Kernels have the layout of the model; query, key and value are separate.
"""

import dataclasses
from collections.abc import Sequence

from vit_jax.weights.entry import Entry
from vit_jax.weights.transforms import FLAX_QKV, FLAX_QKV_BIAS, LEADING_ONE, stack

Layers = Sequence[int] | None

ATTENTION = "MultiHeadDotProductAttention"


@dataclasses.dataclass(frozen=True)
class BlockNames:
    """Numbers in the names of the parts of a block. The first norm is always LayerNorm_0.

    Attributes:
        attention: number of the attention.
        norm2: number of the second norm.
        mlp: number of the MLP.
    """

    attention: int = 0
    norm2: int = 1
    mlp: int = 0


def norm(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """Returns the entries of a LayerNorm.

    Args:
        path: path of the layer in the model.
        key: name of the layer in the file.
        layers: layer numbers of stacked parameters, see `Entry`.
    """
    return [Entry(f"{path}/{name}", f"{key}/{name}", layers=layers) for name in ("scale", "bias")]


def linear(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """Returns the entries of a linear layer, a convolution or a projection of attention.

    Args:
        path: path of the layer in the model.
        key: name of the layer in the file.
        layers: layer numbers of stacked parameters, see `Entry`.
    """
    return [Entry(f"{path}/{name}", f"{key}/{name}", layers=layers) for name in ("kernel", "bias")]


def mlp(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """Returns the entries of an MLP of two linear layers.

    Args:
        path: path of the MLP in the model.
        key: name of the MLP in the file.
        layers: layer numbers of stacked parameters, see `Entry`.
    """
    return [
        *linear(f"{path}/fc1", f"{key}/Dense_0", layers),
        *linear(f"{path}/fc2", f"{key}/Dense_1", layers),
    ]


def map_head(path: str, key: str) -> list[Entry]:
    """Returns the entries of a multi-head attention pooling head.

    Args:
        path: path of the head in the model.
        key: name of the head in the file.
    """
    attention = f"{key}/{ATTENTION}_0"
    kernels = (f"{attention}/key/kernel", f"{attention}/value/kernel")
    biases = (f"{attention}/key/bias", f"{attention}/value/bias")
    return [
        Entry(f"{path}/probe", f"{key}/probe", LEADING_ONE),
        *linear(f"{path}/query", f"{attention}/query"),
        Entry(f"{path}/key_value/kernel", kernels, FLAX_QKV),
        Entry(f"{path}/key_value/bias", biases, FLAX_QKV_BIAS),
        *linear(f"{path}/out", f"{attention}/out"),
        *norm(f"{path}/norm", f"{key}/LayerNorm_0"),
        *mlp(f"{path}/mlp", f"{key}/MlpBlock_0"),
    ]


def blocks(path: str, key: str, names: BlockNames, depth: int, *, scanned: bool) -> list[Entry]:
    """Returns the entries of a stack of pre-norm blocks.

    Args:
        path: path of the stacked blocks in the model.
        key: name of the blocks in the file, as `Transformer/encoderblock`.
        names: numbers of the parts.
        depth: number of blocks.
        scanned: whether the blocks of the file are stacked, or numbered as `encoderblock_0`.
    """
    layers = None if scanned else range(depth)
    key = key if scanned else f"{key}_{{i}}"
    attention = f"{key}/{ATTENTION}_{names.attention}"
    # With stacked blocks, the transform converts all layers at once.
    kernel, bias = (stack(2), stack(1)) if scanned else (FLAX_QKV, FLAX_QKV_BIAS)
    kernels = tuple(f"{attention}/{name}/kernel" for name in ("query", "key", "value"))
    biases = tuple(f"{attention}/{name}/bias" for name in ("query", "key", "value"))
    return [
        *norm(f"{path}/norm1", f"{key}/LayerNorm_0", layers),
        Entry(f"{path}/attention/qkv/kernel", kernels, kernel, layers),
        Entry(f"{path}/attention/qkv/bias", biases, bias, layers),
        *linear(f"{path}/attention/out", f"{attention}/out", layers),
        *norm(f"{path}/norm2", f"{key}/LayerNorm_{names.norm2}", layers),
        *mlp(f"{path}/mlp", f"{key}/MlpBlock_{names.mlp}", layers),
    ]
