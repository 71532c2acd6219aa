"""Entries of the layers as Flax's linen names them, with "/" between the names.

Kernels lie as ours do; query, key and value are apart.
"""

import dataclasses
from collections.abc import Sequence

from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.mapping import Entry
from vit_jax.weights.transforms import FLAX_QKV, FLAX_QKV_BIAS, stack

Layers = Sequence[int] | None

ATTENTION = "MultiHeadDotProductAttention"
# Where training states keep the parameters, besides the optimizer's.
ROOTS = ("params/", "opt/target/")


@dataclasses.dataclass(frozen=True)
class BlockNames:
    """Numbers that linen gives the parts of a block: by kind of layer, or (in 2020) by place.

    Attributes:
        attention: after the first norm, LayerNorm_0.
        norm2: of the second norm.
        mlp: of the MLP.
    """

    attention: int = 0
    norm2: int = 1
    mlp: int = 0


def same(path: str, key: str, names: Sequence[str], layers: Layers = None) -> list[Entry]:
    """Parameters that are the same in both: ("kernel", "bias") or ("scale", "bias")."""
    return [Entry(f"{path}/{name}", f"{key}/{name}", layers=layers) for name in names]


def norm(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """LayerNorm."""
    return same(path, key, ("scale", "bias"), layers)


def linear(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """A linear layer, a convolution, or attention's projections to or from heads."""
    return same(path, key, ("kernel", "bias"), layers)


def mlp(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """Two linear layers."""
    return [
        *linear(f"{path}/fc1", f"{key}/Dense_0", layers),
        *linear(f"{path}/fc2", f"{key}/Dense_1", layers),
    ]


def blocks(path: str, key: str, names: BlockNames, depth: int, *, scanned: bool) -> list[Entry]:
    """Pre-norm blocks, stacked on our `layers` axis.

    Args:
        path: of our blocks.
        key: of theirs, `.../encoderblock`.
        names: of the parts.
        depth: number of blocks.
        scanned: whether theirs are stacked as ours are, or numbered `encoderblock_0` and so on.
    """
    layers = None if scanned else range(depth)
    key = key if scanned else f"{key}_{{i}}"
    attention = f"{key}/{ATTENTION}_{names.attention}"
    # The transform sees all layers of stacked blocks at once.
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


def without_optimizer(file: TensorFile) -> TensorFile:
    """The parameters of a training state, or the file itself."""
    for root in ROOTS:
        if any(key.startswith(root) for key in file):
            return file.renamed(
                lambda key: key.removeprefix(root) if key.startswith(root) else None  # noqa: B023
            )
    return file
