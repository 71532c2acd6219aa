"""Entries of timm's layers."""

from collections.abc import Mapping, Sequence

from vit_jax.weights.entry import Entry
from vit_jax.weights.layers.torch import attention_out, fused_gate, linear, norm

# Layers of a gated MLP whose gate is a layer of its own (`SwiGLU`).
SEPARATE_GATE = {"gate": "fc1_g", "fc1": "fc1_x", "fc2": "fc2"}


def blocks(
    path: str,
    key: str,
    depth: int,
    *,
    gated_mlp: bool = False,
    mlp_layers: Mapping[str, str] | None = None,
    norm_bias: bool = True,
    qkv_bias: bool = True,
    use_bias: bool = True,
) -> list[Entry]:
    """Returns the entries of a stack of pre-norm blocks of attention and MLP.

    Args:
        path: path of the stacked blocks in the model.
        key: name of the blocks in the file, without the number.
        depth: number of blocks.
        gated_mlp: whether the MLPs are gated (`SwiGLUPacked`).
        mlp_layers: name in the file of each layer of the MLPs, as `SEPARATE_GATE`; None for "fc1"
            and "fc2".
        norm_bias: whether the norms have biases.
        qkv_bias: whether queries, keys and values have one bias.
        use_bias: whether the other linear layers have biases.
    """
    key, layers = f"{key}.{{i}}", range(depth)
    entries = [
        *norm(f"{path}/norm1", f"{key}.norm1", layers, bias=norm_bias),
        *linear(f"{path}/attention/qkv", f"{key}.attn.qkv", layers, bias=qkv_bias),
        *attention_out(f"{path}/attention/out", f"{key}.attn.proj", layers, bias=use_bias),
        *norm(f"{path}/norm2", f"{key}.norm2", layers, bias=norm_bias),
    ]
    if mlp_layers is None:
        return entries + mlp(f"{path}/mlp", f"{key}.mlp", layers, gated=gated_mlp)
    for name, theirs in mlp_layers.items():
        entries += linear(f"{path}/mlp/{name}", f"{key}.mlp.{theirs}", layers, bias=use_bias)
    return entries


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
