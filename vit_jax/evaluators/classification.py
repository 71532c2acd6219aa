"""Accuracy of a classifier's own head."""

from collections.abc import Iterator

import numpy as np

from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.zeroshot import rank_of_target
from vit_jax.models.functional import Params


class Classification:
    """Accuracy on a labelled source. Metrics: `top1`, `top5`, shares in [0, 1] of all pictures."""

    def __init__(self, embedder: Embedder, *, data: str, names_file: str | None = None):
        """Opens the source.

        Args:
            embedder: of pictures.
            data: source with labels, as mnist5k:test.
            names_file: for a flat folder, the file of its labels.
        """
        self._embedder, self._data = embedder, data
        self._source = open_source(data, names_file)
        if self._source.labels is None or self._source.class_names is None:
            raise UserError(f"{data} has no labels: classification needs them")

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields top1 and top5."""
        logits = self._embedder.logits(params, self._source)
        classes = len(self._source.class_names or ())
        if logits.shape[1] != classes:
            raise UserError(
                f"{self._data} has {classes} classes, the model has {logits.shape[1]} outputs"
            )
        ranks = rank_of_target(logits, np.asarray(self._source.labels))
        yield "top1", float(np.mean(ranks < 1))
        yield "top5", float(np.mean(ranks < 5))
