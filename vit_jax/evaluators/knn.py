"""Classification by the nearest training examples (Wu et al. 2018; DINO, Caron et al. 2021)."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax.errors import UserError
from vit_jax.evaluators import metrics
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.labels import open_train_and_test
from vit_jax.models.definition import Params


class NearestNeighbors:
    """Accuracy of a vote of the k training images with the most similar features (cosine).

    Metrics for each k: `knn<k>_top1`, a vote with the weights exp(similarity / temperature), as in
    DINO, and `knn<k>_plain_top1`, a vote with equal weights.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            train: labelled source of the neighbors.
            test: labelled source on which the metrics are computed.
            k: numbers of neighbors.
            temperature: temperature of the weighted vote.
        """

        train: str
        test: str
        k: tuple[int, ...] = (10, 20, 100)
        temperature: float = 0.07

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the sources.

        Args:
            config: keys of the evaluator.
            embedder: computes features of images.

        Raises:
            UserError: sources that do not fit together, or an impossible number of neighbors.
        """
        self._config, self._embedder = config, embedder
        self._train, self._test = open_train_and_test(embedder, config.train, config.test)
        if not config.k or min(config.k) < 1 or max(config.k) > len(self._train):
            raise UserError(
                f"k={config.k!r}: expected numbers from 1 to {len(self._train)}, the number of "
                f"examples in {config.train}"
            )

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        similarity, rows = nearest(
            _normalize(self._embedder.image_features(params, self._test)),
            _normalize(self._embedder.image_features(params, self._train)),
            max(self._config.k),
        )
        neighbors = np.asarray(self._train.labels)[rows]
        num_classes = len(self._train.class_names or ())
        weights = np.exp(similarity.astype(np.float64) / self._config.temperature)
        for k in self._config.k:
            for name, votes in (("", weights), ("_plain", np.ones_like(weights))):
                predicted = vote(neighbors[:, :k], votes[:, :k], num_classes)
                yield f"knn{k}{name}_top1", float(np.mean(predicted == self._test.labels))


def nearest(
    queries: Float[np.ndarray, "queries width"],
    keys: Float[np.ndarray, "keys width"],
    k: int,
    *,
    query_chunk: int = 1024,
    key_chunk: int = 65536,
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """Finds the k keys with the largest scalar products.

    Args:
        queries: vectors of the queries.
        keys: vectors of the keys, at least k.
        k: number of keys per query.
        query_chunk: number of queries whose products are on a device at once.
        key_chunk: number of keys whose products are on a device at once.

    Returns:
        Products, float32, in descending order, and rows of the keys. Among equal products the
        first key comes first.
    """
    products, rows = [], []
    for start in range(0, len(queries), query_chunk):
        part = queries[start : start + query_chunk]
        best = np.empty((len(part), 0), np.float32)
        best_rows = np.empty((len(part), 0), np.int64)
        for first in range(0, len(keys), key_chunk):
            block = keys[first : first + key_chunk]
            new, index = jax.device_get(_top_k(part, block, min(k, len(block))))
            best = np.concatenate([best, new], axis=1)
            best_rows = np.concatenate([best_rows, index + first], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best = np.take_along_axis(best, order, axis=1)
            best_rows = np.take_along_axis(best_rows, order, axis=1)
        products.append(best)
        rows.append(best_rows)
    return np.concatenate(products), np.concatenate(rows)


@functools.partial(jax.jit, static_argnums=2)
def _top_k(queries: Array, keys: Array, k: int) -> tuple[Array, Array]:
    products = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
    values, rows = jax.lax.top_k(products, k)
    return values, rows


def vote(
    neighbors: Int[np.ndarray, "queries k"],
    weights: Float[np.ndarray, "queries k"],
    num_classes: int,
) -> Int[np.ndarray, " queries"]:
    """Returns the class with the largest sum of weights; among equal sums the first class.

    Args:
        neighbors: classes of the neighbors.
        weights: weights of the neighbors.
        num_classes: number of classes.
    """
    totals = np.zeros((len(neighbors), num_classes))
    np.add.at(totals, (np.arange(len(neighbors))[:, None], neighbors), weights)
    return metrics.predictions(totals)


def _normalize(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
