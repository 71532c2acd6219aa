"""Fine-tuning of a masked autoencoder ViT-B/16 (He et al. 2022, appendix A.2).

Published: 83.66%, the mean of four seeds 83.57%.

7 h 11 m on 32 V100 (published).

Planned for a slice of TPU v5e, 4x8:

python -m vit_jax.plan --config configs/mae_finetune_b16.py --topology v5e:4x8

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/mae_finetune_b16.py --workdir DIR \\
    --config.init.weights=MAE   # workdir of mae_vit_b16.py, or the authors' checkpoint
"""

from ml_collections import ConfigDict

from configs import deit_b16


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe: DeiT's augmentation, layer-wise learning rates, mean-pooled patches."""
    config = deit_b16.get_config()
    # Learned positions that start from the fixed ones; norm of the mean, which is new.
    config.model.update(pool="mean_norm", position_init="sincos", weight_init="xavier")
    config.init.fresh = ("head/.*", "norm/.*")
    config.data.repeats = 1
    config.total_epochs = 100.0
    config.optim.lr = 5e-4 * config.batch_size / 256
    config.optim.min_lr = 1e-6
    config.optim.layer_decay = 0.65
    return config
