"""Bottlenecks and batch norms, which torchvision, timm and OpenAI's CLIP name alike."""

from collections.abc import Iterable, Sequence

import numpy as np

from vit_jax.weights.layers.torch import Layers, conv, norm
from vit_jax.weights.mapping import Entry

# torch counts the batches of every norm, which its usual averages do not need.
COUNTERS = "*.num_batches_tracked"


def batch_norm(path: str, key: str, layers: Layers = None) -> list[Entry]:
    """BatchNorm: weight, bias and running statistics."""
    return [
        *norm(path, key, layers),
        Entry(f"{path}/mean", f"{key}.running_mean", layers=layers),
        Entry(f"{path}/var", f"{key}.running_var", layers=layers),
    ]


def stages(path: str, key: str, depths: Sequence[int]) -> list[Entry]:
    """The four stages.

    Args:
        path: what stands before our `stage0`.
        key: what stands before `layer1`.
        depths: bottlenecks of each stage.
    """
    entries: list[Entry] = []
    for i, depth in enumerate(depths):
        stage, layer = f"{path}stage{i}", f"{key}layer{i + 1}"
        entries += _bottleneck(f"{stage}/first", f"{layer}.0")
        entries += conv(f"{stage}/first/shortcut_conv", f"{layer}.0.downsample.0", bias=False)
        entries += batch_norm(f"{stage}/first/shortcut_norm", f"{layer}.0.downsample.1")
        if depth > 1:
            entries += _bottleneck(f"{stage}/rest", f"{layer}.{{i}}", range(1, depth))
    return entries


def _bottleneck(path: str, key: str, layers: Layers = None) -> list[Entry]:
    entries: list[Entry] = []
    for i in (1, 2, 3):
        entries += conv(f"{path}/conv{i}", f"{key}.conv{i}", layers, bias=False)
        entries += batch_norm(f"{path}/norm{i}", f"{key}.bn{i}", layers)
    return entries


def counters(entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """torch's counters of batches beside all batch norms among the entries, at zero."""
    means = (key for e in entries for _, keys in e.groups() for key in keys)
    return {
        key.replace(".running_mean", ".num_batches_tracked"): np.zeros((), np.int64)
        for key in means
        if key.endswith(".running_mean")
    }
