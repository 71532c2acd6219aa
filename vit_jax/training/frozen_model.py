"""A frozen model that an objective reads besides the one that is trained, as a teacher."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from vit_jax.checkpoint.manager import with_sharding
from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.parallel.sharding import parameter_shardings
from vit_jax.pretrained.stored import StoredModel, open_stored_model


@dataclasses.dataclass(frozen=True)
class FrozenModel:
    """A model in evaluation mode. Its parameters are an argument of the step, not of its state.

    Attributes:
        spec: architecture and image preprocessing.
        model: definition to bind the parameters to.
        shardings: shardings of the parameters, by the same rules as for trained ones.
        stored: stored parameters; None if only the architecture is known, to plan a run.
    """

    spec: ModelSpec
    model: ModelDef
    shardings: Any
    stored: StoredModel | None

    @property
    def abstract(self) -> Params:
        """`ShapeDtypeStruct`s of the parameters, with shardings."""
        return with_sharding(self.model.shapes(), self.shardings)

    def load(self) -> Params:
        """Reads the parameters, sharded over the mesh.

        Raises:
            UserError: no weights are named, or they do not fit the model.
        """
        if self.stored is None:
            raise UserError(
                "config.objective names no weights of the teacher: expected a weight file or the "
                "workdir of a run"
            )
        return self.stored.load(self.shardings)


def open_frozen_model(
    weights: str, name: str, *, mesh: Mesh, default: ModelSpec, compute: dict[str, Any]
) -> FrozenModel:
    """Opens a model without reading its parameters.

    Args:
        weights: weight file of any known format, or workdir of a run; "" to plan a run without
            weights.
        name: registered model of the weights; "" if the weights name it.
        mesh: mesh that the parameters are sharded over.
        default: model of weights that do not name theirs.
        compute: dtype, scan and remat of the model, see `ModelDef`.

    Raises:
        UserError: an unknown name, or weights that are missing or do not fit the model.
    """
    if weights:
        stored = open_stored_model(weights, name, default, compute, reads_images=True)
        stored.check()
        spec, model = stored.spec, stored.model
    else:
        stored = None
        spec = registry.model_spec(name)
        model = ModelDef(spec.architecture, **compute)
    return FrozenModel(spec, model, parameter_shardings(model, mesh), stored)
