"""Models whose parameters are on disk: in the workdir of a run or in a weight file."""

import dataclasses
from typing import Any

import jax

from vit_jax import workdir as workdir_lib
from vit_jax.checkpoint.manager import DIRECTORY, read_params, with_sharding
from vit_jax.config import model_spec
from vit_jax.data.tokenizers import FILE_NAME as TOKENIZER_FILE
from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.paths import StrPath, absolute, as_path
from vit_jax.pretrained.fetching import fetch_weights
from vit_jax.pretrained.identification import identify
from vit_jax.pretrained.weight_files import check_weights, load_weights
from vit_jax.weights.containers.reading import split_part
from vit_jax.weights.loading import Source


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model whose parameters are on disk and have not been read.

    Attributes:
        path: workdir of a run, or weight file.
        spec: architecture, image preprocessing and spec of the tokenizer.
        model: the model as a pure function of its parameters.
        source: model of the tensors of a weight file, see `Source`; None for a run.
    """

    path: StrPath
    spec: ModelSpec
    model: ModelDef
    source: Source | None = None

    def check(self) -> None:
        """Checks, without reading tensors, that a weight file fits the model.

        Raises:
            UserError: it does not fit.
        """
        if not is_run(self.path):
            check_weights(self.path, self.model, source=self.source)

    def load(self, shardings: Any = None) -> Params:
        """Reads the parameters; of a run, those of the newest checkpoint (EMA if there is one).

        Args:
            shardings: tree of shardings like the parameters; None for the default device.

        Raises:
            UserError: the parameters cannot be read or do not fit.
        """
        if not is_run(self.path):
            return load_weights(self.path, self.model, source=self.source, shardings=shardings)
        config, shapes = workdir_lib.load_config(self.path), self.model.shapes()
        if shardings is None:  # those of the checkpoint name the devices of training
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = jax.tree.map(lambda _: device, shapes)
        abstract = with_sharding(shapes, shardings)
        ema = config.optim.get("ema_decay", 0.0) > 0
        params, _ = read_params(self.path, abstract, ema=ema)
        return params


def open_stored_model(
    weights: str,
    name: str,
    default: ModelSpec,
    compute: dict[str, Any],
    *,
    reads_images: bool = False,
) -> StoredModel:
    """Opens a stored model without reading its parameters.

    Args:
        weights: workdir of a run, or weight file of any known format.
        name: registered model of the weights; "" if the weights describe it.
        default: model of weights that do not describe theirs.
        compute: `dtype`, `scan` and `remat`, see `ModelDef`.
        reads_images: whether the model is called on images, so that its preprocessing matters.

    Raises:
        UserError: an unknown name, or weights that do not exist or cannot be read.
    """
    path = fetch_weights(weights)
    named = registry.model_spec(name) if name else None
    if is_run(path):
        spec = named or run_spec(path)
        return StoredModel(path, spec, ModelDef(spec.architecture, **compute))
    if not split_part(path)[0].exists():
        raise UserError(f"{weights}: expected the workdir of a run or a weight file; found nothing")
    found = identify(path, named, default=default)
    if found.inputs is None and not reads_images:
        found = dataclasses.replace(found, inputs=dataclasses.replace(default.inputs, size=(0, 0)))
    spec = found.spec(weights)
    return StoredModel(path, spec, ModelDef(spec.architecture, **compute), found.source)


def is_run(path: StrPath) -> bool:
    """Returns whether a folder is the workdir of a run that has checkpoints."""
    folder = as_path(path)
    return (folder / workdir_lib.CONFIG_FILE).is_file() and (folder / DIRECTORY).is_dir()


def run_spec(workdir: StrPath) -> ModelSpec:
    """The model of a run, with the tokenizer that the run has saved.

    Args:
        workdir: folder of the run.
    """
    folder = as_path(workdir)
    spec = model_spec(workdir_lib.load_config(folder))
    saved = (folder / TOKENIZER_FILE).is_file()
    return dataclasses.replace(spec, tokenizer=f"saved:{absolute(folder)}") if saved else spec
