"""The teacher of `config.teacher`: a frozen model beside the one that is trained."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.checkpoint.manager import with_sharding
from vit_jax.config import build_spec
from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.parallel.sharding import parameter_shardings
from vit_jax.pretrained.stored import Origin, open_origin


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A classifier that only answers. Its parameters are an argument of the step, not its state.

    Attributes:
        spec: the model and its preprocessing.
        model: the same, to be run.
        shardings: of its parameters, as if they were trained.
        mean: of the student's normalisation, one a channel.
        std: of the student's normalisation, one a channel.
        origin: where the parameters lie; None where nobody has said, to plan a run.
    """

    spec: ModelSpec
    model: ModelDef
    shardings: Any
    mean: Sequence[float]
    std: Sequence[float]
    origin: Origin | None

    def __call__(self, params: Params, images: jax.Array) -> jax.Array:
        """Logits (B, num_classes) for the student's input (B, H, W, 3), evaluation mode."""
        about = self.spec.preprocess
        # From one normalisation to the other, channel by channel.
        scale = [mine / theirs for mine, theirs in zip(self.std, about.std, strict=True)]
        shift = [
            (mine - theirs) / std
            for mine, theirs, std in zip(self.mean, about.mean, about.std, strict=True)
        ]
        return self.model.bind(params)(images * jnp.asarray(scale) + jnp.asarray(shift))

    @property
    def abstract(self) -> Params:
        """`ShapeDtypeStruct`s of the parameters, with shardings."""
        return with_sharding(self.model.shapes(), self.shardings)

    def load(self) -> Params:
        """The parameters, sharded over the mesh.

        Raises:
            UserError: nobody has said where they lie, or they do not fit.
        """
        if self.origin is None:
            raise UserError(
                "config.teacher.weights is not set: expected a weight file or the folder of a run"
            )
        return self.origin.load(self.shardings)


def build_teacher(config: ConfigDict, mesh: Mesh) -> Teacher:
    """The teacher of a config; nothing of it is read yet.

    Raises:
        UserError: none is named, or it does not classify what the student does.
    """
    about = config.teacher
    compute = {**config.compute.to_dict(), "remat": "none"}
    origin = None
    if about.weights:
        origin = open_origin(about.weights, about.model, build_spec(config), compute)
        origin.check()
        spec, model = origin.spec, origin.model
    elif about.model:
        spec = registry.model_spec(about.model)
        model = ModelDef(spec.architecture, **compute)
    else:
        raise UserError(
            "config.objective.name='distillation' needs a teacher: set config.teacher.weights to a "
            "weight file or to the folder of a run, and where the file does not tell its model, "
            "config.teacher.model"
        )
    _check_classes(spec.architecture, config.model.num_classes, about.weights or about.model)
    return Teacher(
        spec=spec,
        model=model,
        shardings=parameter_shardings(model, mesh),
        mean=tuple(config.preprocess.mean),
        std=tuple(config.preprocess.std),
        origin=origin,
    )


def _check_classes(architecture: Any, num_classes: int, name: str) -> None:
    found = getattr(architecture, "num_classes", 0)
    if found != num_classes:
        raise UserError(
            f"config.teacher: {name} has {found} classes, config.model.num_classes={num_classes}"
        )
