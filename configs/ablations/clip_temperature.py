"""CLIP's temperature, learned or fixed, on the embedded emoji.

    vit-jax sweep --config ablations/clip_temperature --workdir runs/clip_temperature

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
    """Learned from 1 / 0.07 (CLIP, section 2.5), or fixed at this value."""
    return seeds({"learned": {}, "fixed": {"optim.freeze": ("logit_scale",)}}, 3)
