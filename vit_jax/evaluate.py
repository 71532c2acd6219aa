"""Evaluates weights, without training: python -m vit_jax.evaluate --workdir DIR

What is evaluated:
    --workdir DIR [--step N]           a run's checkpoint; by default the newest
    --weights FILE [--model NAME]      weights of any format that `convert` reads; the name where
                                       they do not carry their description
    --model NAME                       a registered model with fresh parameters, to compare with

On what:
    nothing more                       the evaluations of the run's config; their metrics equal
                                       those that training wrote at that step
    --evals FILE.py                    the blocks that its get_evals() returns
    --datasets pets,vtab/*,imagenet=folder:/data/val [--evaluators zeroshot,probe]
                                       data sets by name, see vit_jax/evaluators/datasets.py
    --images DIR [--names FILE]        zero-shot accuracy on images of your own: one sub-folder a
                                       class, or a names file with lines `file.png<TAB>label`
    --image FILE --labels "a cat,a dog"  probabilities of your labels for one image

Metrics are printed as a table, or with --json as one object; --output DIR adds a line for each
evaluation to evaluations.jsonl there, and TensorBoard files. With --cache DIR features stay on
disk: a command that was stopped goes on where it was, and the next one on the same weights and data
starts from them.
"""

import importlib.util
import pathlib
from typing import Any

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; by default the newest.", lower_bound=0)
_WEIGHTS = flags.DEFINE_string("weights", None, "File of weights.")
_MODEL = flags.DEFINE_string("model", None, "Registered name of the model.")
_FORMAT = flags.DEFINE_string("format", None, "Format of the weights; by default recognised.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Its spec, where the model's needs a file.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Compute type of --weights.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Global, examples, for --weights.")
_FSDP = flags.DEFINE_integer("fsdp", 1, "Devices that share the parameters of --weights.")

_EVALS = flags.DEFINE_string("evals", None, "Python file with get_evals().")
_DATASETS = flags.DEFINE_list("datasets", None, "Data sets by name, NAME or NAME=SOURCE.")
_EVALUATORS = flags.DEFINE_list("evaluators", None, "For --datasets: zeroshot, probe, knn, ...")
_IMAGES = flags.DEFINE_string("images", None, "Folder of pictures to classify.")
_NAMES = flags.DEFINE_string("names", None, "Names file of a flat --images folder.")
_IMAGE = flags.DEFINE_string("image", None, "One picture to classify.")
_LABELS = flags.DEFINE_string("labels", None, "Labels for --image, separated by commas.")

_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for evaluations.jsonl and TensorBoard.")
_CACHE = flags.DEFINE_string("cache", None, "Folder in which features are kept.")

# Flags of which one at most says on what is evaluated.
_SUBJECTS = (_EVALS, _DATASETS, _IMAGES, _IMAGE)


def main() -> None:
    """Evaluates what the flags ask for and prints it."""
    labels = _check_flags()
    from vit_jax import evaluation as restore
    from vit_jax.evaluators.results import Results
    from vit_jax.parallel import processes

    evals = _read_evals(_EVALS.value) if _EVALS.value else None
    processes.start()
    if _WORKDIR.value:
        opened: restore.Opened = restore.restore(
            _WORKDIR.value, step=_STEP.value, cache=_CACHE.value
        )
    else:
        opened = restore.open_weights(
            _MODEL.value,
            _WEIGHTS.value,
            batch_size=_BATCH_SIZE.value,
            format=_FORMAT.value,
            tokenizer=_TOKENIZER.value,
            dtype=_DTYPE.value,
            fsdp=_FSDP.value,
            cache=_CACHE.value,
        )
    if _IMAGE.value:
        figures = opened.classify(_IMAGE.value, labels)
    else:
        figures = {}
        what = _WORKDIR.value or _WEIGHTS.value or _MODEL.value
        with Results(_OUTPUT.value, str(what), opened.step) as results:
            for found in opened.each(evals if evals is not None else _blocks(opened)):
                results.write(found)
                figures |= found
    if _JSON.value:
        cli.print_json(figures)
    else:
        cli.print_metrics(figures)


def _blocks(opened: Any) -> dict[str, Any]:
    """The evaluations that the flags or the run's config ask for."""
    from vit_jax.evaluators import datasets

    if _IMAGES.value:
        block = {
            "data": f"folder:{_IMAGES.value}",
            "names_file": _NAMES.value,
            "templates": opened.templates,
        }
        return {"zeroshot": {"images": block}}
    if _DATASETS.value:
        pair = opened.model.family == "clip"
        own = ["zeroshot", "retrieval"] if pair else ["classification"]
        return datasets.blocks(_EVALUATORS.value or own, _DATASETS.value)
    return opened.config.evals.to_dict()


def _read_evals(path: str) -> dict[str, Any]:
    """The blocks that a file's get_evals() returns: type -> name -> keys."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"no file of evaluations {path}")
    spec = importlib.util.spec_from_file_location("evals", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--evals={path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_evals"):
        raise UserError(f"{path} has no function get_evals()")
    return module.get_evals()


def _check_flags() -> list[str]:
    """Refuses flags that do not go together; returns the labels."""
    if _WORKDIR.value and (_WEIGHTS.value or _MODEL.value):
        raise UserError("--workdir is a run, --weights and --model are not: give one of them")
    if not (_WORKDIR.value or _WEIGHTS.value or _MODEL.value):
        raise UserError("nothing to evaluate: give --workdir DIR, --weights FILE or --model NAME")
    if _STEP.value is not None and not _WORKDIR.value:
        raise UserError("--step goes with --workdir")
    given = [flag for flag in _SUBJECTS if flag.value]
    if len(given) > 1:
        names = " and ".join(f"--{flag.name}" for flag in given)
        raise UserError(f"{names} say different things to evaluate on: give one of them")
    if not (given or _WORKDIR.value or _LABELS.value is not None or _NAMES.value):
        raise UserError("weights have no evaluations of their own: give --datasets or --evals")
    if _EVALUATORS.value and not _DATASETS.value:
        raise UserError("--evaluators goes with --datasets")
    if _NAMES.value and not _IMAGES.value:
        raise UserError("--names goes with --images")
    if bool(_IMAGE.value) != (_LABELS.value is not None):
        raise UserError('--image and --labels go together, as --image cat.png --labels "cat,dog"')
    labels = [label.strip() for label in (_LABELS.value or "").split(",") if label.strip()]
    if _IMAGE.value and not labels:
        raise UserError('--labels is empty: expected labels separated by commas, as "cat,dog"')
    if len(set(labels)) < len(labels):
        raise UserError(f"--labels has a label twice: {_LABELS.value}")
    return labels


if __name__ == "__main__":
    cli.run(main)
