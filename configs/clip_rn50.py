r"""CLIP with a ResNet-50 (Radford et al. 2021): `clip_vit_b16.py` with another image tower.

    python -m vit_jax.train --config configs/clip_rn50.py --workdir DIR \
        --config.data.train=folder:/data/laion

Result: 59.6% zero-shot on ImageNet after 32 epochs of 400 M pairs (published). Time: not published.
Planned for a TPU v5e 16x16 slice:

    python -m vit_jax.plan --config configs/clip_rn50.py --topology v5e:16x16
"""

from ml_collections import ConfigDict

from . import clip_vit_b16


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of ViT-B/16 with another model and the moments of ResNets."""
    config = clip_vit_b16.get_config(arg)
    config.model = {"name": "clip_rn50"}
    config.optim.update(b2=0.999, eps=1e-8)
    return config
