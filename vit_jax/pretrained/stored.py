"""Parameters from elsewhere: an earlier run's folder, or a weight file of any known format."""

import dataclasses
import pathlib
from typing import Any

from vit_jax import workdir as workdir_lib
from vit_jax.checkpoint.manager import DIRECTORY, read_params, with_sharding
from vit_jax.config import model_spec
from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.pretrained import huggingface, native
from vit_jax.weights import check_weights, count_classes, load_weights, read_architecture


@dataclasses.dataclass(frozen=True)
class Origin:
    """A model whose parameters lie on disk.

    Attributes:
        path: of the run's folder or of the weights.
        spec: the model and its preprocessing.
        model: the same, to be run.
    """

    path: pathlib.Path
    spec: ModelSpec
    model: ModelDef

    def check(self) -> None:
        """Refuses a file that does not fit the model, before anything is read."""
        if not is_run(self.path):
            check_weights(self.path, self.model)

    def load(self, shardings: Any) -> Params:
        """The parameters.

        Args:
            shardings: tree of shardings like the parameters'.
        """
        if not is_run(self.path):
            return load_weights(self.path, self.model, shardings=shardings)
        config = workdir_lib.load_config(self.path)
        abstract = with_sharding(self.model.shapes(), shardings)
        params, _ = read_params(self.path, abstract, ema=config.optim.get("ema_decay", 0.0) > 0)
        return params


def open_origin(weights: str, name: str, otherwise: ModelSpec, compute: dict[str, Any]) -> Origin:
    """What parameters on disk belong to; nothing of them is read yet.

    Args:
        weights: folder of a run, or weight file.
        name: registered model that the weights belong to; "" for what they tell of themselves.
        otherwise: their model where neither tells.
        compute: `dtype`, `scan` and `remat` of the model, see `families.build`.

    Raises:
        UserError: unknown name, no such file, or one that cannot be read.
    """
    path = pathlib.Path(weights).expanduser()
    if not path.exists():
        raise UserError(f"{weights}: expected the folder of a run or a weight file; found nothing")
    spec = registry.model_spec(name) if name else _told(path)
    if not is_run(path) and (name or spec is None):
        spec = _with_head_of(path, spec or otherwise)
    assert spec is not None
    return Origin(path, spec, ModelDef(spec.architecture, **compute))


def is_run(path: pathlib.Path) -> bool:
    """Whether a folder is that of a run, with a checkpoint in it."""
    return (path / workdir_lib.CONFIG_FILE).is_file() and (path / DIRECTORY).is_dir()


def _with_head_of(path: pathlib.Path, spec: ModelSpec) -> ModelSpec:
    """A classifier's spec with as many classes as a file has; others as they are."""
    if not hasattr(spec.architecture, "num_classes"):
        return spec
    changes: dict[str, Any] = {"num_classes": 1}
    if hasattr(spec.architecture, "head_norm"):
        changes["head_norm"] = False  # of no file
    architecture = dataclasses.replace(spec.architecture, **changes)
    found = count_classes(path, ModelDef(architecture))
    return dataclasses.replace(
        spec, architecture=dataclasses.replace(architecture, num_classes=found)
    )


def _told(path: pathlib.Path) -> ModelSpec | None:
    """What weights tell of themselves; None where they do not."""
    if is_run(path):
        return model_spec(workdir_lib.load_config(path))
    if native.is_described(path):
        return native.load_spec(path)
    try:
        _, architecture = read_architecture(path)
        return huggingface.read_spec(path if path.is_dir() else path.parent, architecture)
    except UserError:
        return None
