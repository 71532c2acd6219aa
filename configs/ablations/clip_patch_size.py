"""Patch sizes of CLIP's image tower with equal numbers of examples, on the embedded emoji.

    vit-jax sweep --config ablations/clip_patch_size --workdir runs/clip_patch_size

Result: see docs/ablations.md. Time: four CPU minutes per run. Needs the extra [samples].
"""

from ml_collections import ConfigDict

from vit_jax.recipes import load_recipe
from vit_jax.sweeping import grid, seeds
from vit_jax.sweeping.grids import Variants


def get_config(arg: str = "") -> ConfigDict:
    """The recipe `clip_emoji` with a ninth of its examples."""
    return load_recipe("clip_emoji", ("batch_size=128", "total_examples=32768"))


def get_sweep() -> Variants:
    """Patches of 4 px (64 of an image) and of 8 px (16)."""
    return seeds(grid({"model.image.patch_size": (4, 8)}), 3)
