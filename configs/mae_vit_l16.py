"""Masked autoencoder ViT-L/16 on ImageNet-1k: `mae_vit_b16.py` with a larger model.

    python -m vit_jax.train --config configs/mae_vit_l16.py --workdir DIR

Result after 1600 epochs: 85.95% top-1 fine-tuned and 76.0% by a linear probe (published).
Time: 42 h for 800 epochs on 64 V100 (published). Planned for a TPU v5e 8x8 slice:

    python -m vit_jax.plan --config configs/mae_vit_l16.py --topology v5e:8x8
"""

from ml_collections import ConfigDict

from . import mae_vit_b16


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of ViT-B/16 with another model, sharded over eight devices."""
    config = mae_vit_b16.get_config(arg)
    config.model = {"name": "mae_vit_l16"}
    config.mesh.fsdp = 8
    return config
