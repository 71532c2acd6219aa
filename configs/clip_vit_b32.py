"""CLIP ViT-B/32 (Radford et al. 2021): `clip_vit_b16.py` with larger patches.

Published: zero-shot on ImageNet 63.3% after 32 epochs of 400 M pairs (62.9% by OpenCLIP, of
LAION-400M).

Hours: not published.

Planned for a slice of TPU v5e, 16x16:

python -m vit_jax.plan --config configs/clip_vit_b32.py --topology v5e:16x16

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/clip_vit_b32.py --workdir DIR \\
    --config.data.train=folder:/data/laion
"""

from ml_collections import ConfigDict

from configs import clip_vit_b16
from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe; sharded for a pod."""
    config = clip_vit_b16.get_config()
    with config.unlocked():
        config.model = default_config(model="clip_vit_b32").model
    return config
