"""Swin in Hugging Face's transformers (SwinModel, SwinForImageClassification)."""

from vit_jax.models.swin.model import SwinConfig
from vit_jax.weights.formats.swin_layers import ResizeBiasTable
from vit_jax.weights.layers.torch import conv, linear, norm
from vit_jax.weights.layers.transformers import SWIN, blocks
from vit_jax.weights.mapping import Entry


def swin_prefix(config: SwinConfig) -> str:
    """What stands before the names of the tower; nothing in models without a head."""
    return "swin." if config.num_classes else ""


def swin_entries(config: SwinConfig) -> list[Entry]:
    """The mapping; as in the original code, a stage of theirs ends with the patch merging.

    Bias tables of another window are stretched as images, as the original does in fine-tuning.
    """
    prefix = swin_prefix(config)
    entries = [
        *conv("patch_embed", f"{prefix}embeddings.patch_embeddings.projection"),
        *norm("patch_norm", f"{prefix}embeddings.norm"),
        *norm("norm", f"{prefix}layernorm"),
    ]
    for i, stage in enumerate(config.stages):
        if stage.merge:
            path, key = f"stage{i}/merging", f"{prefix}encoder.layers.{i - 1}.downsample"
            entries += norm(f"{path}/norm", f"{key}.norm")
            entries += linear(f"{path}/reduction", f"{key}.reduction", bias=False)
        path, key = f"stage{i}/blocks", f"{prefix}encoder.layers.{i}.blocks.{{i}}"
        layers = range(stage.depth)
        entries += blocks(path, key, SWIN, layers)
        table = f"{key}.attention.self.relative_position_bias_table"
        resize = ResizeBiasTable(stage.table_window, "bicubic")
        entries.append(Entry(f"{path}/attention/bias_table", table, layers=layers, resize=resize))
    return entries + (linear("head", "classifier") if config.num_classes else [])
