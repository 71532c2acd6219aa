"""LiT on 4,000 handwritten digits: a text tower beside the frozen encoder of `mae_mnist5k.py`.

    python -m vit_jax.train --config configs/mae_mnist5k.py --workdir runs/mae_mnist5k
    python -m vit_jax.train --config configs/lit_mnist5k.py --workdir runs/lit_mnist5k

Result: 90.7% and 88.9% zero-shot top-1 on 1,000 other digits, from two encoders; 93.5% from an
encoder trained for 100 epochs.
Time: three minutes on two CPU cores for the second command. Needs the extra [samples].

Set `init.weights` where the encoder's workdir is another one.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD

from . import mae_mnist5k

TEMPLATES = ("{}", "the digit {}", "a handwritten {}")


def get_config(arg: str = "") -> ConfigDict:
    """A small CLIP whose image tower is the encoder of the masked autoencoder."""
    encoder = mae_mnist5k.get_config()
    config = default_config(model="clip_vit_emoji", objective="contrastive", optimizer="adamw")
    config.model.image = {"name": "mae_vit_b16_encoder", **encoder.model.image}
    config.model.inputs = {"resize": "crop", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    config.model.text.update(vocab_size=300, context_length=12, width=64, num_heads=2, mlp_dim=256)
    config.init.weights = "runs/mae_mnist5k"
    config.init.fresh = ("text.*", "image_projection/.*", "logit_scale")
    config.optim.freeze = ("image/.*",)

    config.data.train = "mnist5k:train"
    config.data.augment = encoder.data.augment
    config.data.templates = TEMPLATES
    config.data.group_by = ("name",)  # each batch has every digit once
    config.batch_size = 10
    config.total_steps = 2000
    config.log_steps = 100
    config.compute.scan = False  # unrolled blocks run faster on a CPU

    config.optim.update(lr=1e-3, warmup_percent=5.0, b2=0.98)
    config.evals.zeroshot = {"mnist5k": {"data": "mnist5k:test", "templates": TEMPLATES}}
    return config
