r"""Linear probe of a masked autoencoder ViT-B/16 on ImageNet-1k (He et al. 2022, appendix A.1).

    python -m vit_jax.train --config configs/mae_probe_b16.py --workdir DIR \
        --config.init.weights=MAE

Result: 67.8% top-1 (68.0% in the paper). Time: 2 h 20 m on 32 V100 (published).
Planned for a TPU v5e 4x8 slice:

    python -m vit_jax.plan --config configs/mae_probe_b16.py --topology v5e:4x8

Set `init.weights` to the workdir of `mae_vit_b16.py`, or to the authors' checkpoint.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The frozen encoder, batch norm without affine, and a linear layer on the class token."""
    config = default_config(
        model="mae_vit_b16_encoder", objective="classification", optimizer="lars"
    )
    config.model.update(num_classes=1000, head_norm=True)
    config.init.fresh = ("head.*",)
    config.optim.freeze = ("(?!head).*",)  # everything except the head

    config.data.train = "tfds:imagenet2012:train"
    config.data.augment = "random_resized_crop|flip"
    config.data.workers = 16
    config.batch_size = 16_384
    config.total_epochs = 90.0
    config.optim.lr = 0.1 * config.batch_size / 256
    config.optim.update(momentum=0.9, warmup_epochs=10.0)

    config.compute.dtype = "bfloat16"
    config.evals.classification = {"imagenet": {"data": "tfds:imagenet2012:validation"}}
    return config
