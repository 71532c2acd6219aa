"""Converts weights between formats.

    python -m vit_jax.convert --input FILE --model NAME --output FILE --to FORMAT

    --workdir DIR   convert a checkpoint of a run instead of --input; --step selects an older one
    --noema         of a run with a moving average, as the teacher of self-distillation, the trained
                    parameters instead, as the student
    --tower image   the image tower alone, as the backbone of self-distillation or of MAE
    --mesh.fsdp N   devices that share the parameters of the run while they are read; the devices at
                    hand need not be those of training
    --from FORMAT   format of the input, if it cannot be recognised from the tensor names
    --overwrite     replace an existing output

FILE is a safetensors file, an .npz, a torch or TorchScript archive, an index of shards, or a folder
that contains one of them. FILE#KEY is one of several sets of weights in a checkpoint. Nothing in
it is executed. --model is the name of a registered model. It
can be left out if the weights describe their architecture: in the library's own format (vit_jax),
or by a config.json beside them. docs/weights.md lists the formats.
"""

import shlex
from typing import TYPE_CHECKING

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, check_name

if TYPE_CHECKING:
    from vit_jax.models.definition import ModelDef, Params
    from vit_jax.models.spec import ModelSpec

_INPUT = flags.DEFINE_string("input", None, "Weight file to read.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of the run to read.")
_STEP = flags.DEFINE_integer("step", None, "Step of the run's checkpoint; default: the newest.")
_EMA = flags.DEFINE_bool("ema", True, "Read the moving average of a run that has one.")
_TOWER = flags.DEFINE_enum("tower", None, ["image"], "Write this tower without the other parts.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
_TO = flags.DEFINE_string("to", None, "Format to write.", required=True)
_FROM = flags.DEFINE_string("from", None, "Format of the input; default: recognised.")
_MODEL = flags.DEFINE_string("model", None, "Registered model of the input.")
_mesh = cli.define_mesh()
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.")


def main() -> None:
    """Reads the weights, checks them and writes the output atomically."""
    _check_flags()
    # JAX is imported after the flags are checked: a mistyped flag is answered at once.
    from vit_jax.pretrained import native
    from vit_jax.pretrained.output import check_output, image_tower, write_output
    from vit_jax.pretrained.weight_files import known_format_names

    if _FROM.value:
        check_name(_FROM.value, known_format_names(), "format")
    output = check_output(_OUTPUT.value, _TO.value, overwrite=_OVERWRITE.value)
    model, params, spec = _from_run() if _WORKDIR.value else _from_file()
    if _TOWER.value:
        model, params, spec = image_tower(model, params, spec)
    write_output(output, _TO.value, params, model, spec)
    if _TO.value == native.NAME:
        cli.suggest(f"vit-jax evaluate --weights {shlex.quote(str(output))} --datasets NAMES")


def _check_flags() -> None:
    """Refuses flags that contradict each other."""
    if bool(_INPUT.value) == bool(_WORKDIR.value):
        raise UserError("expected --input for a weight file, or --workdir for a run")
    if _WORKDIR.value and (_MODEL.value or _FROM.value):
        raise UserError("--model and --from go with --input; a run has its own config")
    if _STEP.value is not None and not _WORKDIR.value:
        raise UserError("--step goes with --workdir")
    if not (_EMA.value or _WORKDIR.value):
        raise UserError("--noema goes with --workdir")


def _from_run() -> "tuple[ModelDef, Params, ModelSpec]":
    """Model, parameters and spec of a checkpoint of a run."""
    from vit_jax.evaluation import open_run

    run = open_run(str(_WORKDIR.value), step=_STEP.value, ema=_EMA.value, mesh=_mesh())
    return run.embedder.model, run.params, run.spec


def _from_file() -> "tuple[ModelDef, Params, ModelSpec | None]":
    """Model, parameters and, if known, the spec of a weight file."""
    from vit_jax.models.definition import ModelDef
    from vit_jax.models.registry import model_spec
    from vit_jax.pretrained.fetching import fetch_weights
    from vit_jax.pretrained.identification import identify
    from vit_jax.pretrained.weight_files import load_weights

    path = fetch_weights(str(_INPUT.value))
    named = model_spec(_MODEL.value) if _MODEL.value else None
    found = identify(path, named, _FROM.value)
    # To the library's own format with the inputs of the folder, to others as the tensors are.
    spec = None if found.inputs is None else found.spec(str(path))
    own = spec is not None and _TO.value == "vit_jax"
    model = ModelDef(spec.architecture if spec and own else found.source.architecture)
    return model, load_weights(path, model, _FROM.value, source=found.source), spec


if __name__ == "__main__":
    cli.run(
        main, stopped="stopped; the same command starts again, with --overwrite if there is output"
    )
