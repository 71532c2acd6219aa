r"""ViT-B/16 of AugReg (Steiner et al. 2022, "How to train your ViT?").

Pre-training on ImageNet-21k, then fine-tuning on ImageNet-1k at 384 px:

    python -m vit_jax.train --config configs/vit_b16_augreg.py --workdir DIR \
        --config.data.train=folder:/data/imagenet21k
    python -m vit_jax.train --config configs/vit_b16_augreg.py:finetune --workdir DIR2 \
        --config.init.weights=DIR

Result: 85.49% top-1 on ImageNet-1k after 300 epochs of the first stage and 20,000 steps of the
second (published). Time: not published. Planned for a TPU v5e 8x8 slice:

    python -m vit_jax.plan --config configs/vit_b16_augreg.py --topology v5e:8x8

Set `data.train` of the first stage to a folder of ImageNet-21k.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe of the first stage, or with `arg="finetune"` of the second."""
    finetune = arg == "finetune"
    config = default_config(
        model="vit_b16_384" if finetune else "vit_b16",
        objective="classification",
        optimizer="sgd" if finetune else "adamw",
    )
    config.data.workers = 16
    config.optim.update(grad_clip_norm=1.0, mu_dtype="bfloat16")
    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    if finetune:
        config.data.train = "tfds:imagenet2012:train"
        config.data.augment = "random_resized_crop(scale=(0.05, 1.0))|flip"
        config.batch_size, config.total_steps = 512, 20_000
        config.init.fresh = ("head/.*",)
        config.optim.update(lr=0.03, warmup_steps=500, momentum=0.9)
        config.evals.classification = {"imagenet": {"data": "tfds:imagenet2012:validation"}}
        return config
    config.model.num_classes = 21_843
    config.data.train = "folder:/data/imagenet21k"
    config.data.augment = (
        "random_resized_crop(scale=(0.05, 1.0))|flip"
        "|randaugment(2, 15, probability=1.0, max_magnitude=15)"
    )
    config.batch_size, config.total_epochs = 4096, 300.0
    config.objective.update(loss="sigmoid", mixup_alpha=0.2)
    config.optim.update(lr=1e-3, warmup_steps=10_000, weight_decay=0.1)
    return config
