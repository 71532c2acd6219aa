r"""CLIP ViT-B/32 (Radford et al. 2021): `clip_vit_b16.py` with larger patches.

    python -m vit_jax.train --config configs/clip_vit_b32.py --workdir DIR \
        --config.data.train=folder:/data/laion

Result: 63.3% zero-shot on ImageNet after 32 epochs of 400 M pairs (published), 62.9% on LAION-400M
(OpenCLIP). Time: not published. Planned for a TPU v5e 16x16 slice:

    python -m vit_jax.plan --config configs/clip_vit_b32.py --topology v5e:16x16
"""

from ml_collections import ConfigDict

from . import clip_vit_b16


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of ViT-B/16 with another model."""
    config = clip_vit_b16.get_config(arg)
    config.model = {"name": "clip_vit_b32"}
    return config
