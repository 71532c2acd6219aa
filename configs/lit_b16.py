r"""LiT-B/16 (Zhai et al. 2022): a text tower trained beside a frozen image tower.

    python -m vit_jax.train --config configs/lit_b16.py --workdir DIR \
        --config.data.train=folder:/data/yfcc_cc12m --config.init.weights=vit_b16_augreg.npz

Result: 72.1% zero-shot on ImageNet with YFCC100M and CC12M (published), there with a pre-trained
BERT-base as text tower; here the text tower starts from random parameters. Batch, learning rate,
warm-up and decay follow big_vision's `lit_coco.py`; the length is our choice. Time: not published.
Planned for a TPU v5e 4x8 slice:

    python -m vit_jax.plan --config configs/lit_b16.py --topology v5e:4x8

Set `data.train` to your pairs and `init.weights` to weights of a ViT-B/16.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """AugReg's ViT-B/16 with a projection, and a text tower of the same width."""
    config = default_config(
        model="openclip_vit_b16", objective="contrastive", optimizer="adafactor"
    )
    config.model.embed_dim = 768
    config.model.image = {"name": "vit_b16", "num_classes": 0}
    config.model.text.update(width=768, num_heads=12, mlp_dim=3072, context_length=16)
    config.model.inputs.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config.init.model = "vit_b16"
    config.init.fresh = ("image/head/.*", "image_projection/.*", "text.*", "logit_scale")
    config.optim.freeze = ("image/.*",)

    config.data.train = "folder:/data/yfcc_cc12m"
    config.data.augment = "random_resized_crop|flip"
    config.data.workers = 16
    config.batch_size = 4096
    config.total_steps = 60_000
    config.optim.update(lr=1e-3, warmup_percent=3.0, grad_clip_norm=1.0, mu_dtype="bfloat16")
    config.optim.weight_decay = 10.0  # big_vision's 0.01, which is not multiplied by lr

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    return config
