"""Weights of Swin in the formats of other libraries.

A stage of the model and of timm begins with patch merging. In the original code and in
transformers, a stage ends with the patch merging that leads to the next stage.
"""

import dataclasses
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.windows import Size, num_offsets, relative_index, resize_bias_table
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import timm
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import conv, linear, norm
from vit_jax.weights.transforms import Shape

# Buffers that follow from the sizes.
BUFFERS = ("*.relative_position_index", "*.attn_mask")


class TimmSwin(Format):
    """State dicts of timm's Swin. Bias tables are resized geometrically, as in timm."""

    name = "timm"
    architectures = (SwinConfig,)
    ignored = BUFFERS
    heads = ("head.fc.*",)
    position_resize = "geometric"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file is of timm and not of the original code."""
        names = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight")
        return all(n in file for n in names) and "layers.0.downsample.reduction.weight" not in file

    def entries(self, architecture: SwinConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        return _swin(architecture, merging_first=True, head="head.fc")


class OfficialSwin(Format):
    """Checkpoints of the original code (github.com/microsoft/Swin-Transformer).

    Bias tables are resized as images, as the original code does for fine-tuning.
    """

    name = "swin"
    architectures = (SwinConfig,)
    ignored = BUFFERS
    heads = ("head.*",)
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether the first stage of a file ends with patch merging."""
        names = ("layers.0.downsample.reduction.weight", "layers.0.blocks.0.attn.qkv.weight")
        return all(name in file for name in names)

    def entries(self, architecture: SwinConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        return _swin(architecture, merging_first=False, head="head")

    def constants(self, architecture: SwinConfig) -> dict[str, np.ndarray]:
        """Returns the buffers of every block; see `Format.constants`.

        They are the row of the bias table for each pair of positions, and the mask of shifted
        windows. They depend on the resolution and are ignored on loading.
        """
        buffers: dict[str, np.ndarray] = {}
        for i, stage in enumerate(architecture.stages):
            for j in range(stage.depth):
                block = f"layers.{i}.blocks.{j}"
                windows = stage.windows(stage.map_size, shifted=j % 2 == 1)
                index = relative_index(windows.size).astype(np.int64)
                buffers[f"{block}.attn.relative_position_index"] = index
                if (mask := windows.mask()) is not None:
                    buffers[f"{block}.attn_mask"] = mask
        return buffers


class TransformersSwin(Format):
    """SwinModel and SwinForImageClassification of Hugging Face's transformers.

    Bias tables are resized as images, as the original code does for fine-tuning.
    """

    name = layers.NAME
    architectures = (SwinConfig,)
    ignored = ("*.relative_position_index", "*embeddings.mask_token")
    heads = layers.HEADS
    position_resize = "bicubic"

    PREFIXES = ("swin.",)
    # Defaults of the library. Published configs leave them out.
    DEFAULTS: ClassVar[layers.Settings] = {
        "image_size": 224,
        "patch_size": 4,
        "embed_dim": 96,
        "depths": (2, 2, 6, 2),
        "num_heads": (3, 6, 12, 24),
        "window_size": 7,
        "mlp_ratio": 4.0,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has a patch embedding with a norm."""
        has_norm = any(f"{prefix}embeddings.norm.weight" in file for prefix in ("", *self.PREFIXES))
        return has_norm and layers.has_patch_embedding(file, self.PREFIXES)

    def view(self, file: TensorFile, architecture: SwinConfig) -> TensorFile:
        """Returns the file under the names of published files; see `Format.view`."""
        prefix = self._prefix(architecture)
        return layers.published_names(file, layers.SWIN, self.PREFIXES, prefix)

    def entries(self, architecture: SwinConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        prefix = self._prefix(architecture)
        entries = stage_entries(architecture, "", prefix)
        if architecture.final_norm:
            entries += norm("norm", f"{prefix}layernorm")
        return entries + (linear("head", "classifier") if architecture.num_classes else [])

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> SwinConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        if config is None:
            return None
        if config.get("model_type") != "swin":
            raise UserError(
                f"config.json: expected model_type 'swin'; found {config.get('model_type')!r}"
            )
        return SwinConfig(**swin_fields(config), num_classes=layers.num_classes(file, config))

    def _prefix(self, config: SwinConfig) -> str:
        return "swin." if config.num_classes else ""


def stage_entries(config: SwinConfig, path: str, prefix: str) -> list[Entry]:
    """Returns the entries of patches and stages in transformers, which detectors contain, too.

    Args:
        config: architecture of the tower.
        path: prefix of the paths in the model.
        prefix: prefix of the names in the file.
    """
    entries = [
        *conv(f"{path}patch_embed", f"{prefix}embeddings.patch_embeddings.projection"),
        *norm(f"{path}patch_norm", f"{prefix}embeddings.norm"),
    ]
    for i, stage in enumerate(config.stages):
        if stage.merge:
            entries += _merging(f"{path}stage{i}", f"{prefix}encoder.layers.{i - 1}")
        blocks, key = f"{path}stage{i}/blocks", f"{prefix}encoder.layers.{i}.blocks"
        entries += layers.blocks(blocks, key, layers.SWIN, stage.depth)
        table = f"{key}.{{i}}.attention.self.relative_position_bias_table"
        resize = ResizeBiasTable(stage.table_window, config.position_resize)
        entries.append(_bias_table(blocks, table, stage.depth, resize))
    return entries


def swin_fields(config: layers.Settings) -> dict[str, Any]:
    """Returns the fields of `SwinConfig` that a `config.json` of transformers determines.

    Args:
        config: content of the file, or of its part for a tower.
    """
    layers.check_settings(config)
    settings = {**TransformersSwin.DEFAULTS, **config}
    return {
        "image_size": layers.image_size(settings),
        "patch_size": settings["patch_size"],
        "width": settings["embed_dim"],
        "depths": tuple(settings["depths"]),
        "num_heads": tuple(settings["num_heads"]),
        "window_size": settings["window_size"],
        "mlp_ratio": settings["mlp_ratio"],
        "activation": layers.activation(settings),
        "norm_epsilon": settings["layer_norm_eps"],
    }


@dataclasses.dataclass(frozen=True)
class ResizeBiasTable:
    """Resizing of relative-position biases ((2 h - 1)(2 w - 1), heads), see `resize_bias_table`.

    A table whose number of rows is neither that of `source` nor that of `window` is assumed to
    belong to a square window.

    Attributes:
        window: rows and columns of the model's window.
        method: key of `windows.RESIZE_METHODS`.
        source: window of the model that the file was saved for, if known.
    """

    window: Size
    method: str
    source: Size | None = None

    @property
    def hint(self) -> str:
        """How to load a table of an unknown window."""
        return "weights_size=(height, width) is the size of the images of the weights"

    def resized_from(self, source: "ResizeBiasTable") -> Self:
        """Returns the same resizing for tables with the window and by the method of `source`."""
        return dataclasses.replace(self, source=source.window, method=source.method)

    def accepts(self, found: Shape, expected: Shape) -> bool:
        """Returns whether a table of shape `found` can be resized to shape `expected`."""
        if len(found) != 2 or found[1:] != expected[1:]:
            return False
        return found[0] == num_offsets(self._window_of(found))

    def __call__(self, table: np.ndarray, expected: Shape) -> np.ndarray:
        """Resizes a table."""
        del expected
        old = self._window_of(table.shape)
        if old == self.window:
            return table
        return np.asarray(resize_bias_table(jnp.asarray(table), old, self.window, self.method))

    def _window_of(self, shape: Shape) -> Size:
        for window in (self.source, self.window):
            if window is not None and num_offsets(window) == shape[0]:
                return window
        return ((round(shape[0] ** 0.5) + 1) // 2,) * 2


def _swin(config: SwinConfig, *, merging_first: bool, head: str) -> list[Entry]:
    """Entries under the names that timm and the original code have in common.

    Args:
        config: architecture of the model.
        merging_first: see `original_entries`.
        head: name of the head in the file.
    """
    entries = original_entries(config, merging_first=merging_first) + norm("norm", "norm")
    return entries + (linear("head", head) if config.num_classes else [])


def original_entries(
    config: SwinConfig, path: str = "", prefix: str = "", *, merging_first: bool = False
) -> list[Entry]:
    """Returns the entries of patches and stages under the names of the original code and timm.

    Args:
        config: architecture of the tower.
        path: prefix of the paths in the model.
        prefix: prefix of the names in the file.
        merging_first: whether a stage in the file begins with patch merging, as in timm, or ends
            with that of the next stage.
    """
    entries = [
        *conv(f"{path}patch_embed", f"{prefix}patch_embed.proj"),
        *norm(f"{path}patch_norm", f"{prefix}patch_embed.norm"),
    ]
    for i, stage in enumerate(config.stages):
        blocks, key = f"{path}stage{i}/blocks", f"{prefix}layers.{i}.blocks"
        entries += timm.blocks(blocks, key, stage.depth)
        table = f"{key}.{{i}}.attn.relative_position_bias_table"
        bias = ResizeBiasTable(stage.table_window, config.position_resize)
        entries.append(_bias_table(blocks, table, stage.depth, bias))
        if stage.merge:
            merging = f"{prefix}layers.{i if merging_first else i - 1}"
            entries += _merging(f"{path}stage{i}", merging)
    return entries


def _bias_table(path: str, key: str, depth: int, resize: ResizeBiasTable) -> Entry:
    return Entry(f"{path}/attention/bias_table", key, layers=range(depth), resize=resize)


def _merging(path: str, key: str) -> list[Entry]:
    """Entries of the patch merging of a stage."""
    return [
        *norm(f"{path}/merging/norm", f"{key}.downsample.norm"),
        *linear(f"{path}/merging/reduction", f"{key}.downsample.reduction", bias=False),
    ]


FORMATS: tuple[Format, ...] = (TimmSwin(), OfficialSwin(), TransformersSwin())
