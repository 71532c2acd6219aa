"""Few-shot classification by ridge regression in closed form.

The recipe of `fewshot_lsr` in big_vision: features standardized over the training examples, a
nearly unpenalized bias, and targets of -1 and 1. The penalty is fixed here; big_vision chooses the
best of several on test data.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.labels import open_train_and_test
from vit_jax.models.definition import Params

_BIAS = 100.0  # constant feature; a large value makes the penalty of the bias negligible


class FewShot:
    """Accuracy on a test source after training on a few examples per class.

    Metrics for each number of shots: `<shots>shot_top1`, the mean over seeds, and
    `<shots>shot_std`, the standard deviation over seeds.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            train: labelled source from which the training examples are drawn.
            test: labelled source on which the metrics are computed.
            shots: numbers of training examples per class; a class with fewer examples gives all.
            seeds: PRNG seeds of the draws.
            l2: factor of the penalty l2 * |W|^2, which is added to the sum of squared errors.
        """

        train: str
        test: str
        shots: tuple[int, ...] = (1, 5, 10, 25)
        seeds: tuple[int, ...] = (0, 1, 2)
        l2: float = 1024.0

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the sources.

        Args:
            config: keys of the evaluator.
            embedder: computes features of images.

        Raises:
            UserError: sources that do not fit together, or a key with an invalid value.
        """
        if not config.shots or min(config.shots) < 1 or not config.seeds:
            raise UserError(
                f"shots={config.shots!r}, seeds={config.seeds!r}: expected at least one of each, "
                "shots 1 or more"
            )
        self._config, self._embedder = config, embedder
        self._train, self._test = open_train_and_test(embedder, config.train, config.test)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        features = self._embedder.image_features(params, self._train)
        test = self._embedder.image_features(params, self._test)
        labels = np.asarray(self._train.labels)
        num_classes = len(self._train.class_names or ())
        for shots in self._config.shots:
            accuracies = []
            for seed in self._config.seeds:
                rows = draw(labels, shots, seed)
                scores = ridge_scores(
                    features[rows], labels[rows], test, num_classes, self._config.l2
                )
                accuracies.append(np.mean(np.argmax(scores, axis=1) == self._test.labels))
            yield f"{shots}shot_top1", float(np.mean(accuracies))
            yield f"{shots}shot_std", float(np.std(accuracies))


def draw(labels: Int[np.ndarray, " examples"], shots: int, seed: int) -> Int[np.ndarray, " drawn"]:
    """Draws rows of up to `shots` examples per class at random.

    Args:
        labels: class of each example.
        shots: number of examples per class.
        seed: PRNG seed. With the same seed, a draw with more shots contains one with fewer.

    Returns:
        Indices of examples.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    sorted_labels = labels[by_class]
    index_in_class = np.arange(len(labels)) - np.searchsorted(sorted_labels, sorted_labels)
    return by_class[index_in_class < shots]


def ridge_scores(
    features: Float[np.ndarray, "train width"],
    labels: Int[np.ndarray, " train"],
    test: Float[np.ndarray, "test width"],
    num_classes: int,
    l2: float,
) -> Float[np.ndarray, "test classes"]:
    """Fits a ridge regression in float64 and applies it.

    Args:
        features: features of the training examples.
        labels: class of each training example.
        test: features of the test examples.
        num_classes: number of classes.
        l2: factor of the penalty.

    Returns:
        Scores of the test examples.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    std = features.std(axis=0, dtype=np.float64) + 1e-5

    def prepare(rows: np.ndarray) -> np.ndarray:
        standardized = (rows - mean) / std
        return np.concatenate([standardized, np.full((len(rows), 1), _BIAS)], axis=1)

    a, targets = prepare(features), 2.0 * np.eye(num_classes)[labels] - 1.0
    if len(a) >= a.shape[1]:
        weights = np.linalg.solve(a.T @ a + l2 * np.eye(a.shape[1]), a.T @ targets)
    else:  # the smaller system has the same solution
        weights = a.T @ np.linalg.solve(a @ a.T + l2 * np.eye(len(a)), targets)
    return prepare(test) @ weights
