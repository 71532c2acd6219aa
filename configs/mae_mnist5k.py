"""Masked autoencoder on 4,000 handwritten digits of MNIST, without their labels.

A linear probe of its encoder reads 93.0% and 91.5% of 1,000 others, in two runs, one of random
weights 61.9%; after 100 epochs in place of 40 it is 95.0%, in one. At 750 images a second, the
rate of the first steps on two CPU cores, it is four minutes.

python -m vit_jax.train --config configs/mae_mnist5k.py --workdir runs/mae_mnist5k
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """A tiny MAE, changed for images of 28 px."""
    config = default_config(model="mae_vit_b16")
    config.model.image.update(
        image_size=28, patch_size=4, width=96, depth=6, num_heads=3, mlp_dim=384, pool="mean"
    )
    config.model.update(decoder_width=64, decoder_depth=2, decoder_num_heads=4, decoder_mlp_dim=256)
    config.preprocess.crop_fraction = 1.0

    config.data.train = "mnist5k:train"
    config.data.augment = "affine(rotate=12, scale=(0.85, 1.15), shear=0.15, shift=0.08)"
    config.batch_size = 128
    config.total_epochs = 40.0
    config.compute.scan = False  # a CPU runs unrolled blocks faster

    config.objective.name = "masked_reconstruction"
    config.optim.lr = 2e-3
    config.optim.warmup_percent = 5.0
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.95
    config.optim.grad_clip_norm = 1.0

    config.eval_percent = 20.0
    config.evals.probe = {"mnist5k": {"train": "mnist5k:train", "test": "mnist5k:test"}}
    return config
