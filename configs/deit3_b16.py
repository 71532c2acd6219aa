"""DeiT III-B/16 on ImageNet-1k (Touvron et al. 2022, "DeiT III: Revenge of the ViT").

Published: 83.8%, after 800 epochs at 192 px and 20 at 224 px. The second stage is the recipe
`deit3_b16.py:finetune`.

Hours: not published.

Planned for a slice of TPU v5e, 8x8:

python -m vit_jax.plan --config configs/deit3_b16.py --topology v5e:8x8

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/deit3_b16.py --workdir DIR

python -m vit_jax.train --config configs/deit3_b16.py:finetune --workdir DIR2 \\
    --config.init.weights=DIR
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe; `arg`: "" or "finetune"."""
    config = default_config(model="deit3_b16")
    config.model.drop_path = 0.2
    config.data.train = "tfds:imagenet2012:train"
    config.data.repeats = 1 if arg == "finetune" else 3
    config.data.workers = 16
    config.objective.update(name="classification", mixup_alpha=0.8, cutmix_alpha=1.0)
    config.optim.update(warmup_epochs=5.0, min_lr=1e-5)
    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.evals.classification = {"imagenet": {"data": "tfds:imagenet2012:validation"}}
    if arg == "finetune":
        config.data.augment = "random_resized_crop|flip|randaugment(2, 9, mstd=0.5, inc=True)"
        config.batch_size, config.total_epochs = 512, 20.0
        config.objective.label_smoothing = 0.1
        config.optim.update(lr=1e-5, weight_decay=0.1)
        return config
    config.model.image_size = 192
    config.data.augment = "random_resized_crop|flip|three_augment|color_jitter(0.3, 0.3, 0.3)"
    config.batch_size, config.total_epochs = 2048, 800.0
    config.objective.loss = "sigmoid"
    config.optim.update(name="lamb", lr=3e-3, weight_decay=0.05)
    # 1.0 of their loss, which is the mean over the thousand classes, not the sum.
    config.optim.grad_clip_norm = 1000.0
    return config
