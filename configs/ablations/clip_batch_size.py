"""Batch sizes of CLIP with equal numbers of examples, on the embedded emoji.

    vit-jax sweep --config ablations/clip_batch_size --workdir runs/clip_batch_size

Result: see docs/ablations.md. Time: four CPU minutes per run. Needs the extra [samples].
"""

from ml_collections import ConfigDict

from vit_jax.recipes import load_recipe
from vit_jax.sweeping import seeds
from vit_jax.sweeping.grids import Variants


def get_config(arg: str = "") -> ConfigDict:
    """The recipe `clip_emoji` with a ninth of its examples."""
    return load_recipe("clip_emoji", ("batch_size=128", "total_examples=32768"))


def get_sweep() -> Variants:
    """Two batch sizes. The learning rate is the same: Muon's updates have a fixed scale."""
    return seeds({f"batch_size={size}": {"batch_size": size} for size in (128, 256)}, 3)
