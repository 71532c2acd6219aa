"""Swin-T on ImageNet-1k (Liu et al. 2021).

Published: 81.2% (81.3% in the paper) after 300 epochs.

Hours: not published.

Planned for a slice of TPU v5e, 4x4:

python -m vit_jax.plan --config configs/swin_t.py --topology v5e:4x4

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/swin_t.py --workdir DIR
"""

from ml_collections import ConfigDict

from configs import deit_b16
from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe: DeiT's with a longer warm-up, clipped gradients and dropped paths."""
    config = deit_b16.get_config()
    with config.unlocked():
        config.model = default_config(model="swin_t").model
    config.model.drop_path = 0.2
    config.data.repeats = 1
    config.optim.warmup_epochs = 20.0
    config.optim.grad_clip_norm = 5.0
    return config
