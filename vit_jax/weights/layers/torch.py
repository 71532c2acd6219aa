"""Entries of the layers of torch.nn."""

from collections.abc import Sequence

import numpy as np

from vit_jax.weights.entry import Entry
from vit_jax.weights.transforms import (
    ATTENTION_OUT,
    CONV,
    FLAT,
    LINEAR,
    Transform,
    concatenate,
)
from vit_jax.weights.transforms import linear as linear_kernel

Layers = Sequence[int] | None
# Counter of batches in every batch norm of torch. It does not affect evaluation.
COUNTERS = "*.num_batches_tracked"


def norm(path: str, key: str, layers: Layers = None, *, bias: bool = True) -> list[Entry]:
    """Returns the entries of a LayerNorm, or of an RMSNorm, which has no bias.

    Args:
        path: path of the layer in the model.
        key: name of the layer in the file.
        layers: layer numbers of stacked parameters, see `Entry`.
        bias: whether the layer has a bias.
    """
    entries = [Entry(f"{path}/scale", f"{key}.weight", layers=layers)]
    if bias:
        entries.append(Entry(f"{path}/bias", f"{key}.bias", layers=layers))
    return entries


def linear(
    path: str,
    key: str,
    layers: Layers = None,
    *,
    bias: bool = True,
    kernel: Transform = LINEAR,
    suffixes: tuple[str, str] = (".weight", ".bias"),
) -> list[Entry]:
    """Returns the entries of a linear layer. Its outputs may be split, as fused q, k and v.

    Args:
        path: path of the layer in the model.
        key: name of the layer in the file.
        layers: layer numbers of stacked parameters, see `Entry`.
        bias: whether the layer has a bias.
        kernel: transform of the kernel; ATTENTION_OUT if its input is split into heads.
        suffixes: suffixes of the names of weight and bias.
    """
    entries = [Entry(f"{path}/kernel", key + suffixes[0], kernel, layers)]
    if bias:
        entries.append(Entry(f"{path}/bias", key + suffixes[1], FLAT, layers))
    return entries


def conv(
    path: str,
    key: str,
    layers: Layers = None,
    *,
    bias: bool = True,
    kernel: Transform = CONV,
) -> list[Entry]:
    """Returns the entries of a convolution.

    Args:
        path: path of the layer in the model.
        key: name of the layer in the file.
        layers: layer numbers of stacked parameters, see `Entry`.
        bias: whether the layer has a bias.
        kernel: transform of the kernel; ENLARGING for a transposed convolution.
    """
    entries = [Entry(f"{path}/kernel", f"{key}.weight", kernel, layers)]
    if bias:
        entries.append(Entry(f"{path}/bias", f"{key}.bias", layers=layers))
    return entries


def patches(path: str, key: str) -> list[Entry]:
    """Returns the entries of an embedding of patches that a file has as a linear layer (NaFlex).

    Its inputs are the pixels of a patch by rows, channels last: the kernel (P, P, 3, D) of the
    model is (D, P * P * 3) in the file.

    Args:
        path: path of the layer in the model.
        key: name of the layer in the file.
    """
    return linear(path, key, kernel=linear_kernel(in_dims=3))


def batch_norm(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """Returns the entries of a batch norm, running statistics included.

    Args:
        path: path of the layer in the model.
        key: name of the layer in the file.
        layers: layer numbers of stacked parameters, see `Entry`.
    """
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return [Entry(f"{path}/{ours}", f"{key}.{name}", layers=layers) for ours, name in names.items()]


def batch_counters(entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Returns the counters of all batch norms among entries, set to zero, by name."""
    keys = (key for entry in entries for _, group in entry.groups() for key in group)
    return {
        key.replace(".running_mean", ".num_batches_tracked"): np.zeros((), np.int64)
        for key in keys
        if key.endswith(".running_mean")
    }


def attention_out(path: str, key: str, layers: Layers = None, *, bias: bool = True) -> list[Entry]:
    """Returns the entries of the output projection of attention.

    Args:
        path: path of the layer in the model.
        key: name of the layer in the file.
        layers: layer numbers of stacked parameters, see `Entry`.
        bias: whether the layer has a bias.
    """
    return linear(path, key, layers, bias=bias, kernel=ATTENTION_OUT)


def layer_scales(path: str, key: str, layers: Sequence[int]) -> list[Entry]:
    """Returns the entries of the LayerScales of a stack of blocks.

    Args:
        path: path of the stacked blocks in the model.
        key: name of the factors in the file, with "{i}" for the block and "{n}" for 1, after the
            attention, and 2, after the MLP.
        layers: layer numbers, see `Entry`.
    """
    return [
        Entry(f"{path}/scale{n}/gamma", key.replace("{n}", n), layers=layers) for n in ("1", "2")
    ]


def fused_gate(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """Returns the entries of gate and first layer of a gated MLP, which a file has as one layer.

    Args:
        path: path of the MLP in the model.
        key: name of the layer in the file. Its first outputs are those of the gate.
        layers: layer numbers of stacked parameters, see `Entry`.
    """
    kernels, biases = ((f"{path}/gate/{n}", f"{path}/fc1/{n}") for n in ("kernel", "bias"))
    return [
        Entry(kernels, f"{key}.weight", concatenate(LINEAR), layers),
        Entry(biases, f"{key}.bias", concatenate(FLAT), layers),
    ]
