"""DeiT's teacher with few labels: does a convolutional teacher help a ViT on 200 digits?

    vit-jax sweep --config ablations/deit_teacher --workdir runs/deit_teacher
    vit-jax sweep --config ablations/deit_few_labels --workdir runs/deit_few_labels

Result: see docs/ablations.md. Time: three CPU minutes per run. Needs the extra [samples].
"""

from ml_collections import ConfigDict

from vit_jax.recipes import load_recipe
from vit_jax.sweeping import seeds
from vit_jax.sweeping.grids import Variants

from . import deit_teacher

TEACHER = "runs/deit_teacher/resnet,seed=0"


def get_config(arg: str = "") -> ConfigDict:
    """The recipe `vit_mnist5k` on the digits that the teacher has seen."""
    return load_recipe("vit_mnist5k", deit_teacher.SHORT)


def get_sweep() -> Variants:
    """Without and with a teacher (Touvron et al. 2021, section 4)."""
    teacher = {
        "model.distillation": True,
        "objective.name": "distillation",
        "objective.teacher_weights": TEACHER,
    }
    return seeds({"labels": {}, "labels_and_teacher": teacher}, 3)
