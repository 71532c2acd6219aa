"""ViT-B/16 on ImageNet-21k (Steiner et al. 2022, "How to train your ViT?"), then on ImageNet-1k.

Published: 85.49% on ImageNet-1k, after 300 epochs of the former and 20,000 steps of the latter at
384 px. The second stage is the recipe `vit_b16_augreg.py:finetune`.

Hours: not published.

Planned for a slice of TPU v5e, 8x8:

python -m vit_jax.plan --config configs/vit_b16_augreg.py --topology v5e:8x8

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/vit_b16_augreg.py --workdir DIR \\
    --config.data.train=folder:/data/imagenet21k

python -m vit_jax.train --config configs/vit_b16_augreg.py:finetune --workdir DIR2 \\
    --config.init.weights=DIR
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe; `arg`: "" or "finetune"."""
    config = default_config(model="vit_b16_384" if arg == "finetune" else "vit_b16")
    config.data.workers = 16
    config.objective.name = "classification"
    config.optim.grad_clip_norm = 1.0
    config.optim.mu_dtype = "bfloat16"
    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    if arg == "finetune":
        config.data.train = "tfds:imagenet2012:train"
        config.data.augment = "random_resized_crop(scale=(0.05, 1.0))|flip"
        config.batch_size, config.total_steps = 512, 20_000
        config.init.fresh = ("head/.*",)
        config.optim.update(name="sgd", lr=0.03, warmup_steps=500, b1=0.9)
        config.evals.classification = {"imagenet": {"data": "tfds:imagenet2012:validation"}}
        return config
    config.model.num_classes = 21_843
    config.data.train = "folder:/data/imagenet21k"  # yours to set
    config.data.augment = (
        "random_resized_crop(scale=(0.05, 1.0))|flip"
        "|randaugment(2, 15, probability=1.0, max_magnitude=15)"
    )
    config.batch_size, config.total_epochs = 4096, 300.0
    config.objective.update(loss="sigmoid", mixup_alpha=0.2)
    config.optim.update(lr=1e-3, warmup_steps=10_000, weight_decay=0.1)
    return config
