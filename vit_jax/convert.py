"""Converts weights: python -m vit_jax.convert --input FILE --model NAME --output FILE --to FORMAT

    --workdir DIR   a run's checkpoint in place of --input and --model; with --step not the newest
    --from FORMAT   where the input's format cannot be recognised from its tensors' names
    --overwrite     replace an existing output

FILE may be safetensors, .npz, a torch or TorchScript archive, an index of shards or a folder with
one of them; nothing in it is executed. --model is a registered name; without it the architecture
is the one described beside the weights, by the library's own format (vit_jax) or by a config.json.
Formats: see vit_jax/weights/formats.
"""

import pathlib
from typing import Any

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, check_name

_INPUT = flags.DEFINE_string("input", None, "Weights to read.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run to read the weights of.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; by default the newest.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
_TO = flags.DEFINE_string("to", None, "Format to write.", required=True)
_FROM = flags.DEFINE_string("from", None, "Format to read; by default recognised.")
_MODEL = flags.DEFINE_string("model", None, "Registered name of the model.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.")


def main() -> None:
    """Reads, checks, writes under a temporary name and renames."""
    from vit_jax.pretrained import native
    from vit_jax.weights import save_weights
    from vit_jax.weights.formats import FORMATS

    _check_flags()
    for name in filter(None, (_TO.value, _FROM.value)):
        check_name(name, FORMATS, "format")
    own = _TO.value == native.NAME
    output = native.tensor_path(_OUTPUT.value) if own else pathlib.Path(_OUTPUT.value)
    for path in (output, output.with_suffix(".json")) if own else (output,):
        if path.exists() and not _OVERWRITE.value:
            raise UserError(f"{path} exists; --overwrite replaces it")
    model, params, spec = _run(_WORKDIR.value) if _WORKDIR.value else _file(str(_INPUT.value))
    if own and spec is None:
        raise UserError(f"--to {native.NAME} stores preprocessing too: name the model with --model")
    if own:
        native.save(output, params, spec)
    else:
        save_weights(params, model, output, _TO.value)
    print(f"{output}: {_TO.value}, {output.stat().st_size:,} bytes")


def _check_flags() -> None:
    """Refuses flags that do not go together."""
    if bool(_INPUT.value) == bool(_WORKDIR.value):
        raise UserError("give --input for a file of weights, or --workdir for a run")
    if _WORKDIR.value and (_MODEL.value or _FROM.value):
        raise UserError("--model and --from go with --input; a run knows its own")
    if _STEP.value is not None and not _WORKDIR.value:
        raise UserError("--step goes with --workdir")


def _run(workdir: str) -> tuple[Any, Any, Any]:
    """Model, parameters and `ModelSpec` of a run's checkpoint."""
    from vit_jax.evaluation import open_run

    run = open_run(workdir, step=_STEP.value)
    return run.embedder.model, run.params, run.spec


def _file(path: str) -> tuple[Any, Any, Any]:
    """Model, parameters and, where it is known, the `ModelSpec` of a file of weights."""
    from vit_jax.models.definition import ModelDef
    from vit_jax.weights import load_weights

    family, architecture, spec = _model(path)
    model = ModelDef(architecture)
    return model, load_weights(path, model, _FROM.value), spec


def _model(path: str) -> tuple[str, Any, Any]:
    """Family, architecture and, where it is known, the whole `ModelSpec` of the input."""
    from vit_jax.models.registry import architecture_name, model_spec
    from vit_jax.pretrained import native
    from vit_jax.weights import read_architecture

    if _MODEL.value:
        spec = model_spec(_MODEL.value)
    elif native.is_described(path):
        spec = native.load_spec(path)
    else:
        return *read_architecture(path, _FROM.value), None
    return architecture_name(spec.architecture), spec.architecture, spec


if __name__ == "__main__":
    cli.run(main)
