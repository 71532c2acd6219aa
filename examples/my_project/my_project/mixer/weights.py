"""Names of MLP-Mixer's parameters in timm."""

from typing import Any

from my_project.mixer.model import MixerConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.layers.torch import conv, linear, norm
from vit_jax.weights.mapping import Entry


class Timm(Format):
    """timm's `MlpMixer`."""

    name = "timm"
    architectures = (MixerConfig,)

    def matches(self, file: TensorFile) -> bool:
        """Whether a file has the token-mixing MLPs of timm's Mixer."""
        return "blocks.0.mlp_tokens.fc1.weight" in file

    def entries(self, architecture: MixerConfig) -> list[Entry]:
        """Names of all parameters; blocks are stacked here and numbered there."""
        layers = range(architecture.depth)
        entries = [*conv("patch_embed", "stem.proj"), *norm("norm", "norm")]
        for index in (1, 2):
            entries += norm(f"blocks/norm{index}", f"blocks.{{i}}.norm{index}", layers)
        for ours in ("tokens", "channels"):
            for layer in ("fc1", "fc2"):
                name = f"blocks.{{i}}.mlp_{ours}.{layer}"
                entries += linear(f"blocks/{ours}/{layer}", name, layers)
        if architecture.num_classes:
            entries += linear("head", "head")
        return entries

    def architecture(self, file: TensorFile, config: Any) -> MixerConfig | None:
        """Unknown: the names do not determine the image size."""
        return None


FORMATS = (Timm(),)
