"""Linear probe of a masked autoencoder ViT-B/16 (He et al. 2022, appendix A.1).

Published: 67.8% (68.0% in the paper).

2 h 20 m on 32 V100 (published).

Planned for a slice of TPU v5e, 4x8:

python -m vit_jax.plan --config configs/mae_probe_b16.py --topology v5e:4x8

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/mae_probe_b16.py --workdir DIR \\
    --config.init.weights=MAE   # workdir of mae_vit_b16.py, or the authors' checkpoint
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe: class token, batch norm without factors, LARS."""
    config = default_config(model="mae_vit_b16")
    with config.unlocked():
        config.model = config.model.image
        config.evals.classification = {"imagenet": {"data": "tfds:imagenet2012:validation"}}
    config.model.update(num_classes=1000, head_norm=True)
    config.init.fresh = ("head.*",)
    config.optim.freeze = ("(?!head).*",)  # all but the head

    config.data.train = "tfds:imagenet2012:train"
    config.data.augment = "random_resized_crop|flip"
    config.data.workers = 16
    config.batch_size = 16_384
    config.total_epochs = 90.0
    config.objective.name = "classification"
    config.optim.update(name="lars", lr=0.1 * config.batch_size / 256, b1=0.9, warmup_epochs=10.0)

    config.compute.dtype = "bfloat16"
    return config
