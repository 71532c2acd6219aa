"""Averages the weights of models that have one architecture: WiSE-FT and model soups.

    python -m vit_jax.soup BEFORE AFTER --alpha 0.5 --output FILE
    python -m vit_jax.soup MODEL MODEL ... --output FILE
    python -m vit_jax.soup MODEL MODEL ... --greedy zeroshot/val/top1 --output FILE

A MODEL is the workdir of a run (its newest checkpoint; RUN/checkpoints/300 is that of step 300), or
a weight file of any format that `convert` reads.

    --alpha A         WiSE-FT: (1 - A) * BEFORE + A * AFTER, models before and after fine-tuning
    (without it)      uniform soup: the mean of all models
    --greedy METRIC   greedy soup: models in the order of a metric of an evaluation, each kept if
                      the mean with it is at least as good. The evaluation is one of the first
                      run's config, or of --evals FILE.py with get_evals(); take held-out data that
                      is not the test set
    --model NAME      registered model of weights that come without a description
    --to FORMAT       format to write, by default vit_jax; --overwrite replaces an existing output

Preprocessing and tokenizer of the output are those of the first model. docs/finetuning.md says what
the methods are for.
"""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, unknown
from vit_jax.paths import as_path

if TYPE_CHECKING:
    from vit_jax.evaluation import Evaluation
    from vit_jax.models.spec import ModelSpec
    from vit_jax.weights.averaging import Params

_ALPHA = flags.DEFINE_float("alpha", None, "Weight of the second model, for WiSE-FT.", 0, 1)
_GREEDY = flags.DEFINE_string("greedy", None, "Metric of a greedy soup, as zeroshot/val/top1.")
_EVALS = flags.DEFINE_string("evals", None, "Python file with a function get_evals().")
_MODEL = flags.DEFINE_string("model", None, "Registered model of weights without a description.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Examples per batch, for weight files.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
_TO = flags.DEFINE_string("to", "vit_jax", "Format to write.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.")
_mesh = cli.define_mesh()


def main(models: Sequence[str]) -> None:
    """Averages the models and writes the weights."""
    _check_flags(models)
    from vit_jax.pretrained.output import check_output, write_output
    from vit_jax.recipes import read_evals
    from vit_jax.weights import averaging

    output = check_output(_OUTPUT.value, _TO.value, overwrite=_OVERWRITE.value)
    evals = read_evals(_EVALS.value) if _EVALS.value else None
    first = _open(models[0])

    def load(number: int) -> "Params":
        return first.params if number == 0 else _load(models[number], first.spec, models[0])

    if _ALPHA.value is not None:
        params = averaging.interpolate(load(0), load(1), _ALPHA.value)
    elif _GREEDY.value is None:
        params = averaging.uniform_soup(len(models), load)
    else:
        score = _Score(first, _GREEDY.value, first.evals if evals is None else evals)
        scores = [score(load(number)) for number in range(len(models))]
        for name, value in zip(models, scores, strict=True):
            print(f"{name}  {_GREEDY.value} {score.value(value):.6g}")
        soup = averaging.greedy_soup(scores, load, score, models)
        print(f"soup of {len(soup.members)}  {_GREEDY.value} {score.value(soup.score):.6g}")
        params = soup.params
    write_output(output, _TO.value, params, first.embedder.model, first.spec)
    cli.suggest(f"vit-jax evaluate --weights {shlex.quote(str(output))} --datasets NAMES")


def _check_flags(models: Sequence[str]) -> None:
    """Refuses flags that contradict each other."""
    if _ALPHA.value is not None and _GREEDY.value is not None:
        raise UserError("--alpha and --greedy exclude each other: give one of them")
    if _ALPHA.value is not None and len(models) != 2:
        raise UserError(
            f"--alpha needs two models, before and after fine-tuning; found {len(models)}"
        )
    if len(models) < 2:
        raise UserError(
            f"expected two or more models, as `vit-jax soup runs/a runs/b`; found {len(models)}"
        )
    if _EVALS.value and _GREEDY.value is None:
        raise UserError("--evals applies to --greedy")
    if _GREEDY.value is not None and _GREEDY.value.count("/") != 2:
        raise UserError(
            f"--greedy={_GREEDY.value}: expected TYPE/NAME/METRIC, as zeroshot/val/top1"
        )


class _Score:
    """A metric of parameters; the higher, the better."""

    def __init__(self, first: "Evaluation", metric: str, evals: Any):
        from vit_jax.reporting.comparison import lower_is_better

        type_name, name, _ = metric.split("/")
        known = [f"{kind}/{each}" for kind, blocks in evals.items() for each in blocks]
        if f"{type_name}/{name}" not in known:
            raise unknown(f"{type_name}/{name}", known, "evaluation of --greedy")
        self._first, self._metric = first, metric
        self._suite = first.suite({type_name: {name: evals[type_name][name]}})
        self._sign = -1.0 if lower_is_better(metric) else 1.0

    def __call__(self, params: "Params") -> float:
        import jax

        from vit_jax.parallel.sharding import parameter_shardings

        embedder = self._first.embedder
        placed = jax.device_put(params, parameter_shardings(embedder.model, embedder.mesh))
        found = self._suite.run(placed)
        if self._metric not in found:
            raise unknown(self._metric, found, "metric of --greedy")
        return self._sign * found[self._metric]

    def value(self, score: float) -> float:
        """The metric of a score."""
        return self._sign * score


def _open(model: str) -> "Evaluation":
    """Opens a run, a checkpoint of a run, or a weight file."""
    from vit_jax.checkpoint.manager import DIRECTORY
    from vit_jax.evaluation import open_run, open_weights
    from vit_jax.pretrained.stored import is_run

    path, run, step = as_path(model), model, None
    if path.name.isdigit() and path.parent.name == DIRECTORY:
        run, step = str(path.parent.parent), int(path.name)
    if is_run(run):
        return open_run(run, step=step, mesh=_mesh())
    return open_weights(_MODEL.value, model, batch_size=_BATCH_SIZE.value, mesh=_mesh())


def _load(model: str, expected: "ModelSpec", title: str) -> "Params":
    """Parameters of a model that has the parameters of the first one.

    Raises:
        UserError: it has other parameters, or a tokenizer whose ids have other meanings.
    """
    from flax.traverse_util import flatten_dict

    from vit_jax.models.definition import ModelDef

    opened = _open(model)
    found, own = (
        {path: tuple(x.shape) for path, x in flatten_dict(shapes, sep="/").items()}
        for shapes in (opened.embedder.model.shapes(), ModelDef(expected.architecture).shapes())
    )
    if differing := sorted(p for p in found.keys() | own.keys() if found.get(p) != own.get(p)):
        path = differing[0]
        raise UserError(
            f"{model}: expected the parameters of {title}; {len(differing)} differ, as {path}: "
            f"expected {own.get(path, 'none')}, found {found.get(path, 'none')}"
        )
    if _vocabulary(opened.spec) != _vocabulary(expected):
        raise UserError(
            f"{model}: expected the tokenizer of {title}; found another one, whose ids have other "
            "meanings. Fine-tune with config.model.tokenizer='saved:WORKDIR' of the first run"
        )
    return opened.params


def _vocabulary(spec: "ModelSpec") -> str | bytes | None:
    """Contents of a tokenizer that is saved in a folder, or else its name."""
    from vit_jax.data.tokenizers import FILE_NAME

    kind, _, folder = (spec.tokenizer or "").partition(":")
    return (as_path(folder) / FILE_NAME).read_bytes() if kind == "saved" else spec.tokenizer


if __name__ == "__main__":
    cli.run_with_arguments(main)
