"""Masked autoencoder ViT-B/16 on ImageNet-1k, without labels (He et al. 2022).

    python -m vit_jax.train --config configs/mae_vit_b16.py --workdir DIR

Result after 1600 epochs: 83.66% top-1 fine-tuned (`mae_finetune_b16.py`) and 67.8% by a linear
probe (`mae_probe_b16.py`), both published. Time: not published for B; see `mae_vit_l16.py` for L.
Planned for a TPU v5e 8x8 slice:

    python -m vit_jax.plan --config configs/mae_vit_b16.py --topology v5e:8x8
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe."""
    config = default_config(
        model="mae_vit_b16", objective="masked_reconstruction", optimizer="adamw"
    )

    config.data.train = "tfds:imagenet2012:train"
    config.data.augment = "random_resized_crop(scale=(0.2, 1.0))|flip"
    config.data.workers = 16
    config.batch_size = 4096
    config.total_epochs = 1600.0

    config.objective.mask_ratio = 0.75
    config.optim.lr = 1.5e-4 * config.batch_size / 256
    config.optim.update(warmup_epochs=40.0, weight_decay=0.05, b2=0.95)

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.checkpoint_percent = 1.0
    return config
