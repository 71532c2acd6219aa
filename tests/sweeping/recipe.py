"""Recipe with four variants of two seeds of a tiny classifier, for runs in separate processes."""

from ml_collections import ConfigDict

from tests.helpers import tiny_classifier
from vit_jax.sweeping import grid, seeds
from vit_jax.sweeping.grids import Variants


def get_config(arg: str = "") -> ConfigDict:
    """`helpers.tiny_classifier`, evaluated at the end."""
    config = tiny_classifier()
    config.checkpoint_steps = 2
    config.evals.classification = {"digits": {"data": "digits:test"}}
    return config


def get_sweep() -> Variants:
    """Learning rates and depths."""
    return seeds(grid({"optim.lr": (1e-3, 3e-3), "model.depth": (1, 2)}), 2)
