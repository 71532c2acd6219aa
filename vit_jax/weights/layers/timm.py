"""Entries of timm's layers."""

from collections.abc import Sequence

from vit_jax.weights.entry import Entry
from vit_jax.weights.layers.torch import attention_out, fused_gate, linear, norm


def blocks(path: str, key: str, depth: int, *, gated_mlp: bool = False) -> list[Entry]:
    """Returns the entries of a stack of pre-norm blocks of attention and MLP.

    Args:
        path: path of the stacked blocks in the model.
        key: name of the blocks in the file, without the number.
        depth: number of blocks.
        gated_mlp: whether the MLPs are gated (`SwiGLUPacked`).
    """
    key, layers = f"{key}.{{i}}", range(depth)
    return [
        *norm(f"{path}/norm1", f"{key}.norm1", layers),
        *linear(f"{path}/attention/qkv", f"{key}.attn.qkv", layers),
        *attention_out(f"{path}/attention/out", f"{key}.attn.proj", layers),
        *norm(f"{path}/norm2", f"{key}.norm2", layers),
        *mlp(f"{path}/mlp", f"{key}.mlp", layers, gated=gated_mlp),
    ]


def mlp(
    path: str, key: str, layers: Sequence[int] | None = None, *, gated: bool = False
) -> list[Entry]:
    """Returns the entries of an MLP of two linear layers.

    Args:
        path: path of the MLP in the model.
        key: name of the MLP in the file.
        layers: layer numbers of stacked parameters, see `Entry`.
        gated: whether the first layer contains the gate.
    """
    first = fused_gate(path, f"{key}.fc1", layers) if gated else None
    return [
        *(first or linear(f"{path}/fc1", f"{key}.fc1", layers)),
        *linear(f"{path}/fc2", f"{key}.fc2", layers),
    ]
