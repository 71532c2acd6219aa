"""Few-shot classification by ridge regression in closed form.

The recipe of big_vision's `fewshot_lsr`: features with mean 0 and deviation 1 over the shots, a
nearly unpenalised bias, targets of -1 and 1. Its penalty is fixed here, where big_vision takes the
best of several on test data.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.linear_probe import open_train_and_test
from vit_jax.models.definition import Params

_BIAS = 100.0  # the constant feature: large, so that the penalty hardly touches it


class FewShot:
    """Accuracy on the test source after a few examples of each class.

    Metrics, for each number of shots: `{shots}shot_top1`, the mean over seeds, and
    `{shots}shot_std`, its deviation.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        train: str,
        test: str,
        shots: Sequence[int] = (1, 5, 10, 25),
        seeds: Sequence[int] = (0, 1, 2),
        l2: float = 1024.0,
    ):
        """Opens the sources.

        Args:
            embedder: of images.
            train: labelled source that the shots are drawn from.
            test: labelled source.
            shots: examples of each class; a class with fewer gives what it has.
            seeds: of the draws.
            l2: penalty l2 * |W|^2 beside the sum of squared errors.
        """
        if not shots or min(shots) < 1 or not seeds:
            raise UserError(f"shots={shots!r}, seeds={seeds!r}: expected some, shots 1 or more")
        self._embedder, self._l2 = embedder, l2
        self._shots, self._seeds = tuple(shots), tuple(seeds)
        self._train, self._test = open_train_and_test(embedder, train, test)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics."""
        x = self._embedder.features(params, self._train)
        test = self._embedder.features(params, self._test)
        labels = np.asarray(self._train.labels)
        classes = len(self._train.class_names or ())
        for shots in self._shots:
            found = []
            for seed in self._seeds:
                rows = draw(labels, shots, seed)
                scores = ridge_scores(x[rows], labels[rows], test, classes, self._l2)
                found.append(np.mean(np.argmax(scores, axis=1) == self._test.labels))
            yield f"{shots}shot_top1", float(np.mean(found))
            yield f"{shots}shot_std", float(np.std(found))


def draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of up to `shots` examples of each class, at random; more shots contain fewer's."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    of_class = labels[by_class]
    place = np.arange(len(labels)) - np.searchsorted(of_class, of_class)
    return by_class[place < shots]


def ridge_scores(
    x: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, l2: float
) -> np.ndarray:
    """Scores (M, C) of test features (M, D) after training on x (N, D), in float64."""
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64) + 1e-5

    def prepare(features: np.ndarray) -> np.ndarray:
        whitened = (features - mean) / std
        return np.concatenate([whitened, np.full((len(features), 1), _BIAS)], axis=1)

    a, targets = prepare(x), 2.0 * np.eye(classes)[labels] - 1.0
    if len(a) >= a.shape[1]:
        weights = np.linalg.solve(a.T @ a + l2 * np.eye(a.shape[1]), a.T @ targets)
    else:  # the smaller system has the same solution
        weights = a.T @ np.linalg.solve(a @ a.T + l2 * np.eye(len(a)), targets)
    return prepare(test) @ weights
