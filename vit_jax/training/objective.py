"""From `config.objective` to the objective, checked against the model."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.data.preprocess import normalize
from vit_jax.errors import UserError, check_name, lookup
from vit_jax.objectives.accumulation import Parts
from vit_jax.objectives.classification import Classification
from vit_jax.objectives.contrastive import Contrastive
from vit_jax.objectives.contrastive_loss import KINDS
from vit_jax.parallel.mesh import BATCH_AXES, batch_shards
from vit_jax.training.step import LossFn

# What turns pictures as they travel, flat and uint8, into the model's input.
Prepare = Callable[[jax.Array], jax.Array]


def build_objective(config: ConfigDict, mesh: Mesh, image_size: int) -> LossFn:
    """The objective of a config.

    Args:
        config: of the run.
        mesh: devices that the batch is split over.
        image_size: side of the model's input, px.

    Raises:
        UserError: an unknown name, or an objective that does not go with the model.
    """
    build = lookup(OBJECTIVES, config.objective.name, "config.objective.name,")
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)

    def prepare(images: jax.Array) -> jax.Array:
        # Pictures travel as uint8, a quarter of the bytes.
        return normalize(images.reshape(-1, image_size, image_size, 3), mean, std)

    return build(config, mesh, prepare)


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
    num_classes = model.get("num_classes", 0)
    if not num_classes:
        raise UserError(
            "config.objective.name='classification' needs a model with a head: the family "
            f"{model.family!r} has none, or config.model.num_classes is not set"
        )
    return Classification(
        objective.loss,
        num_classes=num_classes,
        prepare=prepare,
        label_smoothing=objective.label_smoothing,
        mixup_alpha=objective.mixup_alpha,
        cutmix_alpha=objective.cutmix_alpha,
        parts=_parts(config, mesh),
    )


def _parts(config: ConfigDict, mesh: Mesh) -> Parts:
    return Parts(config.grad_accum_steps, batch_shards(mesh))


OBJECTIVES: dict[str, Callable[[Any, Mesh, Prepare], LossFn]] = {
    "contrastive": _contrastive,
    "classification": _classification,
}
