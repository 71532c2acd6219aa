"""Weights of ResNet in the formats of other libraries."""

from collections.abc import Sequence

import numpy as np

from vit_jax.models.resnet.model import ResNetConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.torch import (
    COUNTERS,
    Layers,
    batch_counters,
    batch_norm,
    conv,
    linear,
)


class TimmResNet(Format):
    """State dicts of timm's and torchvision's ResNet, which have the same names."""

    name = "timm"
    architectures = (ResNetConfig,)
    ignored = (COUNTERS,)
    heads = ("fc.*",)

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the stages and batch norms of a ResNet."""
        return "layer1.0.conv1.weight" in file and "bn1.running_mean" in file

    def entries(self, architecture: ResNetConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        return [
            *conv("stem_conv", "conv1", bias=False),
            *batch_norm("stem_norm", "bn1"),
            *stages("", "", architecture.depths),
            *(linear("head", "fc") if architecture.num_classes else []),
        ]

    def constants(self, architecture: ResNetConfig) -> dict[str, np.ndarray]:
        """Returns the counters of batches; see `Format.constants`."""
        return batch_counters(self.entries(architecture))


def stages(path: str, key: str, depths: Sequence[int]) -> list[Entry]:
    """Returns the entries of the four stages, which CLIP names in the same way.

    Args:
        path: prefix of the paths in the model, before `stage0`.
        key: prefix of the names in the file, before `layer1`.
        depths: number of bottlenecks of each stage.
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


FORMATS: tuple[Format, ...] = (TimmResNet(),)
