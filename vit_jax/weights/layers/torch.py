"""Entries of the layers, and tables, that every torch library writes the same way."""

from collections.abc import Sequence

import numpy as np

from vit_jax.models.layers.positions import sincos_positions
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.mapping import Entry
from vit_jax.weights.transforms import ATTENTION_OUT, CONV, FLAT, LINEAR, Transform

Layers = Sequence[int] | None


def norm(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """LayerNorm: weight and bias."""
    return [
        Entry(f"{path}/scale", f"{key}.weight", layers=layers),
        Entry(f"{path}/bias", f"{key}.bias", layers=layers),
    ]


def linear(
    path: str,
    key: str,
    layers: Layers = None,
    *,
    bias: bool = True,
    kernel: Transform = LINEAR,
    suffixes: tuple[str, str] = (".weight", ".bias"),
) -> list[Entry]:
    """A linear layer; fused query, key and value too, whose output we split.

    Args:
        path: of our layer.
        key: of theirs.
        layers: see `Entry`.
        bias: whether it has one.
        kernel: ATTENTION_OUT where our input is split into heads.
        suffixes: of weight and bias.
    """
    entries = [Entry(f"{path}/kernel", key + suffixes[0], kernel, layers)]
    if bias:
        entries.append(Entry(f"{path}/bias", key + suffixes[1], FLAT, layers))
    return entries


def conv(path: str, key: str, layers: Layers = None, *, bias: bool = True) -> list[Entry]:
    """A convolution, the patch embedding for example."""
    entries = [Entry(f"{path}/kernel", f"{key}.weight", CONV, layers)]
    if bias:
        entries.append(Entry(f"{path}/bias", f"{key}.bias", layers=layers))
    return entries


def attention_out(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """Attention's projection into the residual stream."""
    return linear(path, key, layers, kernel=ATTENTION_OUT)


def fixed_positions(config: ViTConfig, width: int) -> np.ndarray:
    """Sines and cosines (1, num_special + N, width), zero for class and distillation token."""
    table = np.asarray(sincos_positions(config.grid, width))
    return np.pad(table, ((config.num_special, 0), (0, 0)))[None]
