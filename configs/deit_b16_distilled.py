"""`deit_b16.py` with a distillation token and a teacher (Touvron et al. 2021, section 4).

Published: 83.4% after 300 epochs, taught by a RegNetY-16GF (82.9%), which this library does not
have: a ResNet of 101 layers stands in, whose weights are yours to give, timm's or torchvision's.

Hours: not published.

Planned for a slice of TPU v5e, 4x8:

python -m vit_jax.plan --config configs/deit_b16_distilled.py --topology v5e:4x8

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/deit_b16_distilled.py --workdir DIR \\
    --config.teacher.weights=resnet101.safetensors
"""

from ml_collections import ConfigDict

from configs import deit_b16


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of its undistilled twin, taught hard labels."""
    config = deit_b16.get_config()
    config.model.distillation = True
    config.objective.name = "distillation"
    config.objective.distillation = "hard"
    config.teacher.model = "resnet101"
    return config
