"""Evaluators of the project."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params


class ClassAccuracy:
    """Accuracy of a classifier on each class.

    Metrics: the name of each class, a fraction in [0, 1], and `worst`, the smallest of them.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: labelled source.
        """

        data: str

    def __init__(self, config: Config, embedder: Embedder) -> None:
        """Opens the source.

        Args:
            config: keys of the evaluator.
            embedder: computes the logits of images.
        """
        self._embedder = embedder
        self._source = embedder.open_source(config.data)
        if self._source.class_names is None:
            raise UserError(f"{config.data} has no labels: expected a labelled source")

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        logits = self._embedder.class_logits(params, self._source)
        correct, labels = logits.argmax(axis=1) == self._source.labels, self._source.labels
        accuracy = {
            name: float(np.mean(correct[labels == label]))
            for label, name in enumerate(self._source.class_names)
        }
        yield from accuracy.items()
        yield "worst", min(accuracy.values())
