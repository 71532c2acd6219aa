"""Convolutional teacher for `deit_few_labels.py`: a ResNet on 200 digits.

    vit-jax sweep --config ablations/deit_teacher --workdir runs/deit_teacher

Result: see docs/ablations.md. Time: one CPU minute per run. Needs the extra [samples].
"""

from ml_collections import ConfigDict

from vit_jax.recipes import load_recipe
from vit_jax.sweeping import seeds
from vit_jax.sweeping.grids import Variants

SHORT = ("batch_size=64", "total_steps=500", "data.train=mnist5k:train[::20]")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe `resnet_mnist5k` on 20 digits per class."""
    return load_recipe("resnet_mnist5k", SHORT)


def get_sweep() -> Variants:
    """Three teachers; the first one teaches."""
    return seeds({"resnet": {}}, 3)
