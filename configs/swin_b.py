"""Swin-B on ImageNet-1k (Liu et al. 2021): `swin_t.py` with a larger model.

    python -m vit_jax.train --config configs/swin_b.py --workdir DIR

Result: 83.5% top-1 after 300 epochs (published). Time: not published.
Planned for a TPU v5e 8x8 slice:

    python -m vit_jax.plan --config configs/swin_b.py --topology v5e:8x8
"""

from ml_collections import ConfigDict

from . import swin_t


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of Swin-T with another model."""
    config = swin_t.get_config(arg)
    config.model = {"name": "swin_b", "drop_path": 0.5}
    return config
