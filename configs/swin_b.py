"""Swin-B on ImageNet-1k (Liu et al. 2021): `swin_t.py` with a larger model.

Published: 83.5% after 300 epochs.

Hours: not published.

Planned for a slice of TPU v5e, 8x8:

python -m vit_jax.plan --config configs/swin_b.py --topology v5e:8x8

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/swin_b.py --workdir DIR
"""

from ml_collections import ConfigDict

from configs import swin_t
from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe."""
    config = swin_t.get_config()
    with config.unlocked():
        config.model = default_config(model="swin_b").model
    config.model.drop_path = 0.5
    return config
