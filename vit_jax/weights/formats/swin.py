"""Swin's original checkpoints (github.com/microsoft/Swin-Transformer)."""

import numpy as np

from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.windows import relative_index
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.formats.swin_layers import BUFFERS, swin
from vit_jax.weights.mapping import Entry


class OfficialSwin(Format):
    """Names as timm's, but a stage ends with the patch merging that leads to the next.

    Bias tables of another window are stretched as images, as the original does in fine-tuning.
    """

    name = "swin"
    families = ("swin",)
    ignored = BUFFERS

    def matches(self, file: TensorFile) -> bool:
        names = ("layers.0.downsample.reduction.weight", "layers.0.blocks.0.attn.qkv.weight")
        return all(name in file for name in names)

    def entries(self, family: str, architecture: SwinConfig) -> list[Entry]:
        return swin(architecture, merging_first=False, head="head", resize="bicubic")

    def constants(self, family: str, architecture: SwinConfig) -> dict[str, np.ndarray]:
        """The buffers of every block, which depend on the resolution: ignored when they are read.

        Row of the bias table for each pair of positions, and the mask of shifted windows.
        """
        buffers: dict[str, np.ndarray] = {}
        for i, stage in enumerate(architecture.stages):
            for j in range(stage.depth):
                block = f"layers.{i}.blocks.{j}"
                windows = stage.windows((stage.map_side, stage.map_side), shifted=j % 2 == 1)
                index = relative_index(windows.size).astype(np.int64)
                buffers[f"{block}.attn.relative_position_index"] = index
                if (mask := windows.mask()) is not None:
                    buffers[f"{block}.attn_mask"] = mask
        return buffers
