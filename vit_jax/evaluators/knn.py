"""Classification by the nearest training examples (Wu et al. 2018; DINO, Caron et al. 2021)."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluators import metrics
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.linear_probe import open_train_and_test
from vit_jax.models.definition import Params

_QUERIES, _KEYS = 1024, 65536  # rows whose similarities are on a device at once


class NearestNeighbours:
    """Accuracy of a vote of the k training images with the most similar features (cosine).

    Metrics, for each k: `knn{k}_top1`, a vote weighted with exp(similarity / temperature), as in
    DINO, and `knn{k}_plain_top1`, where every neighbour counts the same.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        train: str,
        test: str,
        k: Sequence[int] = (10, 20, 100),
        temperature: float = 0.07,
    ):
        """Opens the sources.

        Args:
            embedder: of images.
            train: labelled source of the neighbours.
            test: labelled source.
            k: numbers of neighbours.
            temperature: of the weighted vote.
        """
        self._embedder, self._k, self._temperature = embedder, tuple(k), temperature
        self._train, self._test = open_train_and_test(embedder, train, test)
        if not k or min(k) < 1 or max(k) > len(self._train):
            raise UserError(f"k={k!r}: expected numbers from 1 to {train}'s {len(self._train)}")

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics."""
        similarity, rows = nearest(
            _unit(self._embedder.features(params, self._test)),
            _unit(self._embedder.features(params, self._train)),
            max(self._k),
        )
        neighbours = np.asarray(self._train.labels)[rows]
        classes = len(self._train.class_names or ())
        weights = np.exp(similarity.astype(np.float64) / self._temperature)
        for k in self._k:
            for name, share in (("", weights), ("_plain", np.ones_like(weights))):
                predicted = vote(neighbours[:, :k], share[:, :k], classes)
                yield f"knn{k}{name}_top1", float(np.mean(predicted == self._test.labels))


def nearest(queries: np.ndarray, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k keys with the largest scalar product, best first; of equal ones the first.

    Args:
        queries: (Q, D).
        keys: (N, D), N at least k.
        k: how many.

    Returns:
        Products (Q, k), float32, and rows of the keys (Q, k).
    """
    products, rows = [], []
    for start in range(0, len(queries), _QUERIES):
        part = queries[start : start + _QUERIES]
        best = np.empty((len(part), 0), np.float32)
        found = np.empty((len(part), 0), np.int64)
        for first in range(0, len(keys), _KEYS):
            block = keys[first : first + _KEYS]
            new, place = jax.device_get(_top_k(part, block, min(k, len(block))))
            best = np.concatenate([best, new], axis=1)
            found = np.concatenate([found, place + first], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best = np.take_along_axis(best, order, axis=1)
            found = np.take_along_axis(found, order, axis=1)
        products.append(best)
        rows.append(found)
    return np.concatenate(products), np.concatenate(rows)


@functools.partial(jax.jit, static_argnums=2)
def _top_k(queries: jax.Array, keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    products = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(products, k)


def vote(neighbours: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """The class with the largest sum of weights, (Q,); of equal ones the first.

    Args:
        neighbours: (Q, k) classes.
        weights: (Q, k).
        classes: C.
    """
    totals = np.zeros((len(neighbours), classes))
    np.add.at(totals, (np.arange(len(neighbours))[:, None], neighbours), weights)
    return metrics.predictions(totals)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
