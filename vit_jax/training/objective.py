"""From `config.objective` to the objective, checked against the model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.errors import UserError, check_name, lookup
from vit_jax.inputs import normalize
from vit_jax.models.mae.model import num_shown
from vit_jax.objectives.classification import Classification
from vit_jax.objectives.contrastive.loss import KINDS
from vit_jax.objectives.contrastive.objective import Contrastive
from vit_jax.objectives.distillation import Distillation, Teacher
from vit_jax.objectives.masked_reconstruction import MaskedReconstruction
from vit_jax.objectives.microbatches import Microbatches
from vit_jax.parallel.mesh import BATCH_AXES, batch_shards
from vit_jax.training.step import LossFn

# What turns images as they travel, flat and uint8, into the model's input.
Prepare = Callable[[jax.Array], jax.Array]


def build_objective(
    config: ConfigDict, mesh: Mesh, image_size: int, teacher: Teacher | None = None
) -> LossFn:
    """The objective of a config.

    Args:
        config: of the run.
        mesh: devices that the batch is split over.
        image_size: side of the model's input, px.
        teacher: for objectives that have one, see `has_teacher`.

    Raises:
        UserError: an unknown name, or an objective that does not go with the model.
    """
    kind = _kind(config)
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)

    def prepare(images: jax.Array) -> jax.Array:
        # Images travel as uint8, a quarter of the bytes.
        return normalize(images.reshape(-1, image_size, image_size, 3), mean, std)

    return kind.build(config, mesh, prepare, *([] if teacher is None else [teacher]))


def has_teacher(config: ConfigDict) -> bool:
    """Whether the objective learns from a second model; refuses a model that cannot."""
    if _kind(config).objective is not Distillation:
        return False
    if not config.model.get("distillation", False):
        raise UserError(
            "config.objective.name='distillation' teaches a distillation token: it needs a model "
            f"of the family vit with config.model.distillation=True; found {config.model.family!r}"
            f"{' without it' if 'distillation' in config.model else ''}"
        )
    return True


def fields_read(config: ConfigDict) -> tuple[str, ...]:
    """What the objective reads of a batch: "image" alone, or with it "label" or "tokens"."""
    return _kind(config).objective.reads


def _contrastive(config: ConfigDict, mesh: Mesh, prepare: Prepare) -> Contrastive:
    loss, model = config.objective.loss, config.model
    check_name(loss, KINDS, "config.objective.loss,")
    if model.family != "clip":
        raise UserError(
            "config.objective.name='contrastive' compares pictures with texts: it needs a model of "
            f"the family clip, found {model.family!r}"
        )
    if loss == "sigmoid" and model.init_logit_bias is None:
        raise UserError(
            "config.objective.loss='sigmoid' needs config.model.init_logit_bias (SigLIP: -10.0)"
        )
    return Contrastive(
        loss,
        prepare=prepare,
        parts=_parts(config, mesh),
        form=config.objective.form,
        tile_size=config.objective.tile_size,
        mesh=mesh,
        batch_axes=BATCH_AXES,
    )


def _classification(config: ConfigDict, mesh: Mesh, prepare: Prepare) -> Classification:
    objective, model = config.objective, config.model
    if not model.get("num_classes", 0):
        raise UserError(
            "config.objective.name='classification' needs a model with a head: the family "
            f"{model.family!r} has none, or config.model.num_classes is not set"
        )
    return Classification(objective.loss, **_supervision(config, mesh, prepare))


def _supervision(config: ConfigDict, mesh: Mesh, prepare: Prepare) -> dict[str, Any]:
    """What learning from labels has in common, with a teacher or without."""
    return {
        "num_classes": config.model.num_classes,
        "prepare": prepare,
        "label_smoothing": config.objective.label_smoothing,
        "mixup_alpha": config.objective.mixup_alpha,
        "cutmix_alpha": config.objective.cutmix_alpha,
        "parts": _parts(config, mesh),
    }


def _distillation(
    config: ConfigDict, mesh: Mesh, prepare: Prepare, teacher: Teacher
) -> Distillation:
    objective = config.objective
    return Distillation(
        objective.loss,
        teacher=teacher,
        kind=objective.distillation,
        alpha=objective.distillation_alpha,
        temperature=objective.distillation_temperature,
        **_supervision(config, mesh, prepare),
    )


def _masked_reconstruction(
    config: ConfigDict, mesh: Mesh, prepare: Prepare
) -> MaskedReconstruction:
    model, ratio = config.model, config.objective.mask_ratio
    if model.family != "mae":
        raise UserError(
            "config.objective.name='masked_reconstruction' predicts hidden patches: it needs a "
            f"model with a decoder, of the family mae; found {model.family!r}"
        )
    num_patches = (model.image.image_size // model.image.patch_size) ** 2
    if not 0 < num_shown(num_patches, ratio) < num_patches:
        raise UserError(
            f"config.objective.mask_ratio={ratio} of {num_patches} patches: expected a share that "
            "hides at least one and shows at least one"
        )
    return MaskedReconstruction(
        prepare=prepare,
        num_patches=num_patches,
        patch_size=model.image.patch_size,
        mask_ratio=ratio,
        normalize_pixels=config.objective.normalize_pixels,
        parts=_parts(config, mesh),
    )


def _parts(config: ConfigDict, mesh: Mesh) -> Microbatches:
    return Microbatches(config.grad_accum_steps, batch_shards(mesh))


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A row of `OBJECTIVES`.

    Attributes:
        objective: the class, which says in `reads` what it reads of a batch.
        build: makes one, or refuses the config.
    """

    objective: Any
    build: Callable[..., LossFn]


OBJECTIVES: dict[str, _Kind] = {
    "contrastive": _Kind(Contrastive, _contrastive),
    "classification": _Kind(Classification, _classification),
    "distillation": _Kind(Distillation, _distillation),
    "masked_reconstruction": _Kind(MaskedReconstruction, _masked_reconstruction),
}


def _kind(config: ConfigDict) -> _Kind:
    return lookup(OBJECTIVES, config.objective.name, "config.objective.name,")
