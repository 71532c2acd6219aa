"""Variants of a recipe, and the ways to train them.

A recipe of an ablation has, beside `get_config`, a function `get_sweep()` that returns its
variants: the name of each, and the config keys that it changes.

    from vit_jax.sweeping import grid, seeds

    def get_sweep():
        return seeds(grid({"optim.lr": (1e-3, 3e-3), "batch_size": (256, 1024)}), 3)

Variants with names of your own are a dict:

    {"softmax": {"objective": "contrastive"}, "sigmoid": {"objective": "siglip", "optim.lr": 1e-3}}
"""

from vit_jax.sweeping.grids import grid, seeds

__all__ = ["grid", "seeds"]
