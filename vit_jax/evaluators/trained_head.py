"""Metrics and predictions of a linear head that was trained on features."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_jax.data.sources import Source
from vit_jax.evaluators import metrics, predictions
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.logistic import class_logits
from vit_jax.models.definition import Params


class TrainedHead:
    """The part of a linear probe that follows the training of its head."""

    _embedder: Embedder
    _test: Source

    def _score(self, params: Params, theta: Any) -> Iterator[tuple[str, float]]:
        """Yields the metrics of a head on the test examples.

        Args:
            params: parameters of the model that computes the features.
            theta: weights and bias, see `logistic.class_logits`.
        """
        logits = class_logits(self._embedder.image_features(params, self._test), *theta)
        labels = np.asarray(self._test.labels)
        self._found = predictions.top_classes(logits, metrics.softmax(logits), labels)
        correct = np.argmax(logits, axis=1) == labels
        yield "top1", float(np.mean(correct))
        yield "mean_per_class_recall", metrics.mean_per_class_recall(correct, labels)

    def predicted(self, limit: int) -> predictions.Arrays:
        """Returns what the last `run` predicted, see `predictions.classification`."""
        names, max_pixels = self._test.class_names or (), self._embedder.max_image_pixels
        return predictions.classification(
            self._found, names, self._test, limit=limit, max_pixels=max_pixels
        )
