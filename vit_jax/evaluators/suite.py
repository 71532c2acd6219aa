"""All evaluations of a config."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from vit_jax.errors import MissingPackageError, UserError
from vit_jax.evaluators import EVALUATORS, predictions
from vit_jax.evaluators.base import Evaluator
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params
from vit_jax.paths import StrPath

# Decimals of a metric. Later decimals are rounding errors of float32 features, which depend on the
# number of rows that a device computes at once.
DECIMALS = 6


class Suite:
    """Evaluators built from the blocks of `config.evals`.

    Attributes:
        evaluators: evaluator by its full name, `<type>/<name>`.
        skipped: reason by the full name of each optional block whose data are not installed.
    """

    def __init__(self, evals: Mapping[str, Any], embedder: Embedder, objective: Any = None):
        """Builds every evaluator, which opens its data.

        Args:
            evals: blocks by type and name. A block holds the keys of an evaluator, and two keys of
                the suite: `evaluator`, the name of the evaluator or `package.module:Name` (by
                default the type), and `optional`, whether the block is skipped where its data are
                not installed (by default False).
            embedder: computes embeddings of images and texts.
            objective: objective of the run, for evaluators that need it; None for weights without
                a run.

        Raises:
            UserError: an unknown evaluator or key, missing data, or an evaluator that needs an
                objective where there is none.
        """
        self.evaluators: dict[str, Evaluator] = {}
        self.skipped: dict[str, str] = {}
        self._embedder = embedder
        for full_name, path, component, config, optional in _parse_blocks(evals):
            arguments: tuple[Any, ...] = (config, embedder)
            if getattr(component, "needs_objective", False):
                arguments += (_check_objective(objective, path),)
            try:
                self.evaluators[full_name] = component(*arguments)
            except MissingPackageError as error:
                if not optional:
                    raise
                self.skipped[full_name] = str(error)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None

    def run(self, params: Params) -> dict[str, float]:
        """Runs all evaluators.

        Args:
            params: parameters of the model.

        Returns:
            Value of each metric by its full name, `<type>/<name>/<metric>`.
        """
        return {name: value for metrics in self.run_each(params) for name, value in metrics.items()}

    def run_each(self, params: Params) -> Iterator[dict[str, float]]:
        """Runs the evaluators one after the other.

        Args:
            params: parameters of the model.

        Yields:
            Metrics of one evaluator by their full names.
        """
        for full_name, evaluator in self.evaluators.items():
            yield {
                f"{full_name}/{metric}": round(float(value), DECIMALS)
                for metric, value in evaluator.run(params)
            }
        self._embedder.forget()

    def save_predictions(self, workdir: StrPath, limit: int) -> None:
        """Writes what the evaluators predicted in the last `run`, see `predictions`.

        Only process 0 writes. Evaluators without predictions are left out.

        Args:
            workdir: folder of the run, local or in a bucket.
            limit: largest number of examples per evaluator; 0 writes nothing.
        """
        if jax.process_index() or not limit:
            return
        for full_name, evaluator in self.evaluators.items():
            if isinstance(evaluator, predictions.Predicts):
                predictions.save(workdir, full_name, evaluator.predicted(limit))


def needs_objective(evals: Mapping[str, Any]) -> bool:
    """Whether any block of `config.evals` names an evaluator that needs the run's objective."""
    return any(
        getattr(component, "needs_objective", False) for _, _, component, *_ in _parse_blocks(evals)
    )


def _parse_blocks(evals: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any, bool]]:
    """Yields full name, config path, component, its config, and whether the block is optional."""
    for type_name, blocks in evals.items():
        for name, block in _items(blocks, f"config.evals.{type_name}", "NAME = {...}"):
            path = f"config.evals.{type_name}.{name}"
            keys = dict(_items(block, path, "KEY = VALUE"))
            optional = keys.pop("optional", False)
            evaluator = keys.pop("evaluator", type_name)
            component, config = EVALUATORS.select({"name": evaluator, **keys}, path)
            yield f"{type_name}/{name}", path, component, config, bool(optional)


def _items(block: Any, path: str, entry: str) -> Any:
    if not hasattr(block, "items"):
        raise UserError(f"{path}={block!r}: expected a block of keys, as {path}.{entry}")
    return block.items()


def _check_objective(objective: Any, path: str) -> Any:
    if objective is None:
        raise UserError(
            f"{path} needs the objective of a run: evaluate a run (--workdir); weights alone have "
            "no objective"
        )
    return objective
