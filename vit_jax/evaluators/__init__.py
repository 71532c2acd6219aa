"""Evaluations with one small interface: built from a config block, `run(params)` yields metrics.

`config.evals.<type>.<name>` holds the blocks; the metrics are called `<type>/<name>/<metric>`. The
same objects serve training and `evaluate.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from vit_jax.data.embedded.art import MissingPackageError
from vit_jax.errors import UserError, lookup
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.few_shot import FewShot
from vit_jax.evaluators.knn import NearestNeighbours
from vit_jax.evaluators.linear_probe import LinearProbe
from vit_jax.evaluators.multilabel import MultiLabel
from vit_jax.evaluators.retrieval import Retrieval
from vit_jax.evaluators.sgd_probe import SgdProbe
from vit_jax.evaluators.zeroshot import ZeroShot
from vit_jax.models.definition import Params

# Decimals of a metric. Further ones would show the rounding of float32 features, which depends on
# the rows that a device computes at once.
DIGITS = 6


class Evaluator(Protocol):
    """One evaluation."""

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields (metric, value)."""
        ...


TYPES: dict[str, type] = {
    "classification": Classification,
    "fewshot": FewShot,
    "knn": NearestNeighbours,
    "multilabel": MultiLabel,
    "probe": LinearProbe,
    "retrieval": Retrieval,
    "sgd_probe": SgdProbe,
    "zeroshot": ZeroShot,
}


class Suite:
    """All evaluations of a config."""

    def __init__(self, evals: Mapping[str, Any], embedder: Embedder):
        """Opens the data of every block; a mistake in any block shows here.

        Args:
            evals: type -> name -> keys of the evaluator. The key `optional` lets a block be
                skipped where its data are not installed.
            embedder: how images and texts become embeddings.

        Raises:
            UserError: unknown type or key, missing data.
        """
        self.evaluators: dict[str, Evaluator] = {}
        self.skipped: dict[str, str] = {}  # name -> reason
        self._embedder = embedder
        for kind, blocks in evals.items():
            evaluator = lookup(TYPES, kind, "evaluator type in config.evals,")
            for name, block in blocks.items():
                keys = dict(block)
                optional = keys.pop("optional", False)
                try:
                    self.evaluators[f"{kind}/{name}"] = evaluator(embedder, **keys)
                except TypeError as error:  # names the unexpected or missing key
                    reason = str(error).replace(f"{evaluator.__name__}.__init__() ", "")
                    raise UserError(f"config.evals.{kind}.{name}: {reason}") from None
                except UserError as error:
                    if not (optional and isinstance(error, MissingPackageError)):
                        raise
                    self.skipped[f"{kind}/{name}"] = str(error)

    def run(self, params: Params) -> dict[str, float]:
        """All metrics by their full names."""
        return {name: value for found in self.each(params) for name, value in found.items()}

    def each(self, params: Params) -> Iterator[dict[str, float]]:
        """Metrics by their full names, one evaluator after the other."""
        for name, evaluator in self.evaluators.items():
            yield {
                f"{name}/{metric}": round(float(value), DIGITS)
                for metric, value in evaluator.run(params)
            }
        self._embedder.forget()
