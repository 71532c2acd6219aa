"""Linear probe: logistic regression on frozen features (CLIP, appendix A.3)."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator

import numpy as np

from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.labels import check_same_classes, open_labelled, open_train_and_test
from vit_jax.evaluators.logistic import (
    MAX_ITERATIONS,
    Joined,
    LogisticRegression,
    moments,
    predict,
)
from vit_jax.evaluators.trained_head import TrainedHead
from vit_jax.models.definition import Params

logger = logging.getLogger(__name__)

SWEEP = "sweep"
# CLIP's sweep: powers of ten, then steps around the best one are halved to an eighth of a decade.
_COARSE = tuple(range(-6, 7, 2))
_FINEST = 1 / 8


class LinearProbe(TrainedHead):
    """Accuracy of a linear classifier trained on the features of the image encoder.

    The features are those before the projection into the space shared with texts. Metrics on the
    test source: `top1`, `mean_per_class_recall`, and with a sweep `lambda`, the chosen penalty.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            train: labelled source on which the classifier is trained.
            test: labelled source on which the metrics are computed.
            validation: labelled source on which a sweep chooses the penalty. It is then added to
                the training data. "": a random fifth of the training data.
            l2: factor of the penalty l2 / 2 * |W|^2, which is added to the mean cross-entropy; or
                "sweep", CLIP's search for lambda = l2 * N from 1e-6 to 1e6, eight steps per decade.
            standardize: whether the penalty applies to standardized features. CLIP's protocol does
                not standardize.
            max_iterations: largest number of L-BFGS iterations.
        """

        train: str
        test: str
        validation: str = ""
        l2: float | str = 1e-3
        standardize: bool = True
        max_iterations: int = MAX_ITERATIONS

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the sources.

        Args:
            config: keys of the evaluator.
            embedder: computes features of images.

        Raises:
            UserError: sources that do not fit together, or a key with an invalid value.
        """
        self._config, self._embedder = config, embedder
        self._train, self._test = open_train_and_test(embedder, config.train, config.test)
        self._validation: Source | None = None
        if config.validation:
            self._validation = open_labelled(embedder, config.validation)
            check_same_classes(self._train, config.train, self._validation, config.validation)
        l2 = config.l2
        if isinstance(l2, str) and l2 != SWEEP:
            raise UserError(f"l2={l2!r}: expected a number or {SWEEP!r}")
        if not isinstance(l2, str) and l2 < 0:
            raise UserError(f"l2={l2}: expected 0 or more")
        if config.validation and l2 != SWEEP:
            raise UserError(f"validation={config.validation!r} is unused: it applies to l2='sweep'")

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        x = self._embedder.image_features(params, self._train)
        y = np.asarray(self._train.labels)
        regression = functools.partial(
            LogisticRegression,
            num_classes=len(self._train.class_names or ()),
            mesh=self._embedder.mesh,
            scale=moments(x)[1] + 1e-6 if self._config.standardize else 1.0,
            max_iterations=self._config.max_iterations,
        )
        data, l2 = Joined([x]), self._config.l2
        if isinstance(l2, str):
            fit, fit_y, check, check_y = self._split(params, x, y)
            fitted = regression(fit, fit_y)

            def accuracy(penalty: float) -> float:
                theta = fitted.fit(penalty / len(fit_y))
                return float(np.mean(predict(check, *theta) == check_y))

            chosen = sweep(accuracy)
            del fitted  # frees the features on the devices
            yield "lambda", chosen
            if self._validation is not None:
                data, y = Joined([x, check]), np.concatenate([y, check_y])
            l2 = chosen / len(y)
        theta = regression(data, y).fit(l2)
        yield from self._score(params, theta)

    def _split(
        self, params: Params, x: np.ndarray, y: np.ndarray
    ) -> tuple[Joined, np.ndarray, np.ndarray, np.ndarray]:
        """Returns features and labels for fitting, then those on which a sweep chooses."""
        if self._validation is not None:
            check = self._embedder.image_features(params, self._validation)
            return Joined([x]), y, check, np.asarray(self._validation.labels)
        order = np.random.default_rng(0).permutation(len(y))
        held_out, kept = np.sort(order[: len(y) // 5]), np.sort(order[len(y) // 5 :])
        return Joined([x], kept), y[kept], x[held_out], y[held_out]


def sweep(accuracy: Callable[[float], float]) -> float:
    """Searches for the penalty with the best accuracy, from coarse to fine (CLIP, appendix A.3).

    Args:
        accuracy: returns the validation accuracy of a penalty.

    Returns:
        Penalty lambda; among equally good ones the largest.
    """
    accuracies = {float(exponent): accuracy(10.0**exponent) for exponent in _COARSE}
    step = float(_COARSE[1] - _COARSE[0])
    while step > _FINEST:
        step /= 2
        best = max(accuracies, key=lambda exponent: (accuracies[exponent], exponent))
        for exponent in (best - step, best + step):
            if exponent not in accuracies and _COARSE[0] <= exponent <= _COARSE[-1]:
                accuracies[exponent] = accuracy(10.0**exponent)
    best = max(accuracies, key=lambda exponent: (accuracies[exponent], exponent))
    logger.info("lambda 1e%+.3f is the best of %d on validation data.", best, len(accuracies))
    return 10.0**best
