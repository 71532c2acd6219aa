"""LiT-B/16 (Zhai et al. 2022): a locked image tower and a text tower that learns to read it out.

Published: zero-shot on ImageNet 72.1% (YFCC100M and CC12M), with a BERT-base as pre-trained text
tower, which this library does not have: here it starts from nothing. Batch, rate, warm-up and decay
are those of big_vision's demonstration `lit_coco.py`, the length is our choice.

Hours: not published.

Planned for a slice of TPU v5e, 4x8:

python -m vit_jax.plan --config configs/lit_b16.py --topology v5e:4x8

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/lit_b16.py --workdir DIR \\
    --config.data.train=folder:/data/yfcc_cc12m --config.init.weights=vit_b16_augreg.npz
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The image tower of AugReg, with a projection, beside a text tower as wide."""
    config = default_config(model="openclip_vit_b16")
    with config.unlocked():
        config.model.image = default_config(model="vit_b16").model
    config.model.image.num_classes = 0
    config.model.text.update(width=768, num_heads=12, mlp_dim=3072, context_length=16)
    config.model.embed_dim = 768
    config.preprocess.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config.init.model = "vit_b16"
    config.init.fresh = ("image/head/.*", "image_projection/.*", "text.*", "logit_scale")
    config.optim.freeze = ("image/.*",)

    config.data.train = "folder:/data/yfcc_cc12m"  # yours to set
    config.data.augment = "random_resized_crop|flip"
    config.data.workers = 16
    config.batch_size = 4096
    config.total_steps = 60_000
    config.optim.update(name="adafactor", lr=1e-3, warmup_percent=3.0, grad_clip_norm=1.0)
    config.optim.update(weight_decay=10.0)  # big_vision's 0.01, which it does not multiply by lr
    config.optim.mu_dtype = "bfloat16"

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    return config
