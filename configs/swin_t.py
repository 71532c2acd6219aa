"""Swin-T on ImageNet-1k (Liu et al. 2021): `deit_b16.py` with another model and warm-up.

    python -m vit_jax.train --config configs/swin_t.py --workdir DIR

Result: 81.2% top-1 after 300 epochs (81.3% in the paper). Time: not published.
Planned for a TPU v5e 4x4 slice:

    python -m vit_jax.plan --config configs/swin_t.py --topology v5e:4x4
"""

from ml_collections import ConfigDict

from . import deit_b16


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe."""
    config = deit_b16.get_config(arg)
    config.model = {"name": "swin_t", "drop_path": 0.2}
    config.data.repeats = 1
    config.optim.update(warmup_epochs=20.0, grad_clip_norm=5.0)
    return config
