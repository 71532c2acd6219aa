r"""Fine-tuning of a masked autoencoder ViT-B/16 on ImageNet-1k (He et al. 2022, appendix A.2).

    python -m vit_jax.train --config configs/mae_finetune_b16.py --workdir DIR \
        --config.init.weights=MAE

Result: 83.66% top-1, mean of four seeds 83.57% (published).
Time: 7 h 11 m on 32 V100 (published). Planned for a TPU v5e 4x8 slice:

    python -m vit_jax.plan --config configs/mae_finetune_b16.py --topology v5e:4x8

Set `init.weights` to the workdir of `mae_vit_b16.py`, or to the authors' checkpoint.
"""

from ml_collections import ConfigDict

from . import deit_b16


def get_config(arg: str = "") -> ConfigDict:
    """DeiT's augmentation, layer-wise learning rates, mean-pooled patches."""
    config = deit_b16.get_config(arg)
    # Learned positions that start from the fixed ones; the norm after pooling is new.
    config.model.update(pool="mean_norm", position_init="sincos", weight_init="xavier")
    config.init.fresh = ("head/.*", "norm/.*")
    config.data.repeats = 1
    config.total_epochs = 100.0
    config.optim.lr = 5e-4 * config.batch_size / 256
    config.optim.update(min_lr=1e-6, layer_decay=0.65)
    return config
