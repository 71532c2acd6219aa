"""timm: ViT, DeiT and DINOv2; Swin; ResNet, which torchvision names alike.

MAE's encoder without its decoder, pre-trained or fine-tuned, has timm's names too.
"""

from typing import Any

import numpy as np

from vit_jax.models.resnet.model import ResNetConfig
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.formats import timm_vit
from vit_jax.weights.formats.resnet_layers import COUNTERS, batch_norm, counters, stages
from vit_jax.weights.formats.swin_layers import BUFFERS, swin
from vit_jax.weights.layers.torch import conv, linear
from vit_jax.weights.mapping import Entry


def resnet(config: ResNetConfig) -> list[Entry]:
    """A ResNet, with its head if it has one."""
    return [
        *conv("stem_conv", "conv1", bias=False),
        *batch_norm("stem_norm", "bn1"),
        *stages("", "", config.depths),
        *(linear("head", "fc") if config.num_classes else []),
    ]


class Timm(Format):
    """State dicts of timm's models."""

    name = "timm"
    families = ("vit", "swin", "resnet")
    ignored = (*BUFFERS, COUNTERS)

    def matches(self, file: TensorFile) -> bool:
        if "layer1.0.conv1.weight" in file:
            return "bn1.running_mean" in file
        if "patch_embed.proj.weight" not in file:
            return False
        is_vit = "blocks.0.attn.qkv.weight" in file
        is_swin = "layers.0.blocks.0.attn.qkv.weight" in file
        # The official formats `mae` and `swin` differ in these.
        official = ("mask_token", "decoder_embed.weight", "layers.0.downsample.reduction.weight")
        return (is_vit or is_swin) and not any(name in file for name in official)

    def entries(self, family: str, architecture: Any) -> list[Entry]:
        if family == "resnet":
            return resnet(architecture)
        if family == "swin":
            return swin(architecture, merging_first=True, head="head.fc", resize="geometric")
        return timm_vit.vit(architecture)

    def constants(self, family: str, architecture: Any) -> dict[str, np.ndarray]:
        if family == "resnet":
            return counters(resnet(architecture))
        return timm_vit.constants(architecture) if family == "vit" else {}
