"""Swin, whose original code and timm differ in where a stage ends and in the name of the head."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.stage import StageConfig
from vit_jax.models.swin.windows import Size, num_offsets, resize_bias_table
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm
from vit_jax.weights.mapping import Entry
from vit_jax.weights.transforms import Shape

# Tables of the original's that follow from the sizes.
BUFFERS = ("*.relative_position_index", "*.attn_mask")


@dataclasses.dataclass(frozen=True)
class ResizeBiasTable:
    """Relative-position biases ((2 h - 1)(2 w - 1), heads) of a square window.

    Attributes:
        window: the model's, (rows, columns).
        method: a key of `windows.RESIZE_METHODS`.
    """

    window: Size
    method: str

    def accepts(self, found: Shape, wanted: Shape) -> bool:
        """Whether the rows are those of a square window."""
        return len(found) == 2 and found[1:] == wanted[1:] and found[0] == self._rows(found)

    def __call__(self, table: np.ndarray, wanted: Shape) -> np.ndarray:
        """Resizes the table."""
        old = (self._side(table.shape),) * 2
        return np.asarray(resize_bias_table(jnp.asarray(table), old, self.window, self.method))

    def _side(self, shape: Shape) -> int:
        return (round(shape[0] ** 0.5) + 1) // 2

    def _rows(self, shape: Shape) -> int:
        return num_offsets((self._side(shape),) * 2)


def swin(config: SwinConfig, *, merging_first: bool, head: str, resize: str) -> list[Entry]:
    """All entries.

    Args:
        config: of the tower.
        merging_first: whether a stage of theirs begins with the patch merging, as ours do, or ends
            with that of the next.
        head: their name for it.
        resize: how bias tables become those of another window, see `ResizeBiasTable`.
    """
    entries = [
        *conv("patch_embed", "patch_embed.proj"),
        *norm("patch_norm", "patch_embed.norm"),
        *norm("norm", "norm"),
    ]
    for i, stage in enumerate(config.stages):
        entries += _blocks(stage, f"stage{i}/blocks", f"layers.{i}.blocks.{{i}}", resize)
        if stage.merge:
            path, key = f"stage{i}/merging", f"layers.{i if merging_first else i - 1}.downsample"
            entries += norm(f"{path}/norm", f"{key}.norm")
            entries += linear(f"{path}/reduction", f"{key}.reduction", bias=False)
    return entries + (linear("head", head) if config.num_classes else [])


def _blocks(config: StageConfig, path: str, key: str, resize: str) -> list[Entry]:
    layers = range(config.depth)
    return [
        *norm(f"{path}/norm1", f"{key}.norm1", layers),
        *linear(f"{path}/attention/qkv", f"{key}.attn.qkv", layers),
        *attention_out(f"{path}/attention/out", f"{key}.attn.proj", layers),
        Entry(
            f"{path}/attention/bias_table",
            f"{key}.attn.relative_position_bias_table",
            layers=layers,
            resize=ResizeBiasTable(config.table_window, resize),
        ),
        *norm(f"{path}/norm2", f"{key}.norm2", layers),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.fc1", layers),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.fc2", layers),
    ]
