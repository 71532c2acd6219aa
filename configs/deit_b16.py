"""DeiT-B/16 on ImageNet-1k (Touvron et al. 2021).

    python -m vit_jax.train --config configs/deit_b16.py --workdir DIR

Result: 81.8% top-1 after 300 epochs (published).
Time: 53 h on eight V100 (published); 4 h 40 m on a TPU v4-64 in JAX (deit3-jax, 81.46%).
Planned for a TPU v5e 4x8 slice:

    python -m vit_jax.plan --config configs/deit_b16.py --topology v5e:4x8
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe."""
    config = default_config(model="deit_b16", objective="classification", optimizer="adamw")
    config.model.drop_path = 0.1

    config.data.train = "tfds:imagenet2012:train"
    config.data.augment = (
        "random_resized_crop|flip|randaugment(2, 9, mstd=0.5, inc=True)|random_erasing(0.25)"
    )
    config.data.repeats = 3
    config.data.workers = 16
    config.batch_size = 1024
    config.total_epochs = 300.0

    config.objective.update(label_smoothing=0.1, mixup_alpha=0.8, cutmix_alpha=1.0)
    config.optim.lr = 5e-4 * config.batch_size / 512
    config.optim.update(min_lr=1e-5, warmup_epochs=5.0, weight_decay=0.05)

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.evals.classification = {"imagenet": {"data": "tfds:imagenet2012:validation"}}
    return config
