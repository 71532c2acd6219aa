"""Names of transformer blocks in Hugging Face's transformers."""

import dataclasses
from collections.abc import Sequence

from vit_jax.weights.layers.torch import attention_out, linear, norm
from vit_jax.weights.mapping import Entry
from vit_jax.weights.transforms import SEPARATE_QKV, SEPARATE_QKV_BIAS


@dataclasses.dataclass(frozen=True)
class BlockNames:
    """What a library's block calls its parts; theirs keep query, key and value apart.

    Attributes:
        norm1: before the attention.
        qkv: query, key and value.
        out: attention's projection into the residual stream.
        norm2: before the MLP.
        fc1: first layer of the MLP.
        fc2: second layer of the MLP.
    """

    norm1: str
    qkv: tuple[str, str, str]
    out: str
    norm2: str
    fc1: str
    fc2: str


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
SWIN = dataclasses.replace(
    VIT, qkv=("attention.self.query", "attention.self.key", "attention.self.value")
)
# Of all these but CLIP, in memory since transformers 5.
MODULES = dataclasses.replace(
    VIT,
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    out="attention.o_proj",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)


def blocks(path: str, key: str, names: BlockNames, layers: Sequence[int]) -> list[Entry]:
    """Pre-norm blocks stacked on our `layers` axis.

    Args:
        path: of our blocks.
        key: of theirs, with `{i}`.
        names: of the parts.
        layers: see `Entry`.
    """
    qkv = f"{path}/attention/qkv"
    weights = tuple(f"{key}.{name}.weight" for name in names.qkv)
    biases = tuple(f"{key}.{name}.bias" for name in names.qkv)
    return [
        *norm(f"{path}/norm1", f"{key}.{names.norm1}", layers),
        Entry(f"{qkv}/kernel", weights, SEPARATE_QKV, layers),
        Entry(f"{qkv}/bias", biases, SEPARATE_QKV_BIAS, layers),
        *attention_out(f"{path}/attention/out", f"{key}.{names.out}", layers),
        *norm(f"{path}/norm2", f"{key}.{names.norm2}", layers),
        *linear(f"{path}/mlp/fc1", f"{key}.{names.fc1}", layers),
        *linear(f"{path}/mlp/fc2", f"{key}.{names.fc2}", layers),
    ]
