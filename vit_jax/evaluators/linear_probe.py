"""Linear probe: logistic regression on frozen features (CLIP, appendix A.3)."""

import functools
import logging
from collections.abc import Callable, Iterator

import numpy as np

from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.evaluators import metrics
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.logistic import MAX_ITERATIONS, Joined, LogisticRegression, moments, predict
from vit_jax.evaluators.zeroshot import check_labels
from vit_jax.models.definition import Params

logger = logging.getLogger(__name__)

SWEEP = "sweep"
# CLIP's sweep: powers of ten, then the interval around the best is halved until there are eight
# steps a decade.
_COARSE = tuple(range(-6, 7, 2))
_FINEST = 1 / 8


class LinearProbe:
    """Accuracy of a linear classifier trained on the image tower's features.

    Features are taken before the projection into the joint space. Metrics on the test source:
    `top1`, `mean_per_class_recall`, and with a sweep `lambda`, the chosen penalty.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        train: str,
        test: str,
        validation: str = "",
        l2: float | str = 1e-3,
        standardize: bool = True,
        max_iterations: int = MAX_ITERATIONS,
    ):
        """Opens the sources.

        Args:
            embedder: of images.
            train: labelled source the classifier is trained on.
            test: labelled source it is measured on.
            validation: labelled source that a sweep chooses by, and that then joins the training
                data; "" takes a random fifth of the training data.
            l2: strength of the penalty l2 / 2 * |W|^2, beside the mean cross-entropy; or "sweep",
                CLIP's search for lambda = l2 * N from 1e-6 to 1e6, eight steps a decade.
            standardize: whether each feature gets mean 0 and deviation 1; CLIP's protocol does not.
            max_iterations: of L-BFGS.
        """
        self._embedder, self._standardize = embedder, standardize
        self._max_iterations = max_iterations
        self._train, self._test = open_train_and_test(embedder, train, test)
        self._validation = open_labelled(embedder, validation) if validation else None
        if self._validation is not None:
            check_same_classes(self._train, train, self._validation, validation)
        if isinstance(l2, str) and l2 != SWEEP:
            raise UserError(f"l2={l2!r}: expected a number or {SWEEP!r}")
        if not isinstance(l2, str) and l2 < 0:
            raise UserError(f"l2={l2}: expected 0 or more")
        if validation and l2 != SWEEP:
            raise UserError(f"validation goes with l2={SWEEP!r}: a given l2 needs none")
        self._l2 = l2

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics."""
        x, y = self._embedder.features(params, self._train), np.asarray(self._train.labels)
        scale = moments(x)[1] + 1e-6 if self._standardize else 1.0
        regression = functools.partial(
            LogisticRegression,
            num_classes=len(self._train.class_names or ()),
            mesh=self._embedder.mesh,
            scale=scale,
            max_iterations=self._max_iterations,
        )
        data, strength = Joined([x]), self._l2
        if isinstance(strength, str):
            fit, fit_y, check, check_y = self._split(params, x, y)
            fitted = regression(fit, fit_y)

            def accuracy(penalty: float) -> float:
                theta = fitted.fit(penalty / len(fit_y))
                return float(np.mean(predict(check, *theta) == check_y))

            chosen = sweep(accuracy)
            del fitted  # its features leave the devices
            yield "lambda", chosen
            if self._validation is not None:
                data, y = Joined([x, check]), np.concatenate([y, check_y])
            strength = chosen / len(y)
        theta = regression(data, y).fit(strength)
        test = self._embedder.features(params, self._test)
        labels = np.asarray(self._test.labels)
        correct = predict(test, *theta) == labels
        yield "top1", float(np.mean(correct))
        yield "mean_per_class_recall", metrics.mean_per_class_recall(correct, labels)

    def _split(
        self, params: Params, x: np.ndarray, y: np.ndarray
    ) -> tuple[Joined, np.ndarray, np.ndarray, np.ndarray]:
        """Features and labels that a sweep fits, and those that it chooses by."""
        if self._validation is not None:
            check = self._embedder.features(params, self._validation)
            return Joined([x]), y, check, np.asarray(self._validation.labels)
        order = np.random.default_rng(0).permutation(len(y))
        held_out, kept = np.sort(order[: len(y) // 5]), np.sort(order[len(y) // 5 :])
        return Joined([x], kept), y[kept], x[held_out], y[held_out]


def sweep(accuracy: Callable[[float], float]) -> float:
    """The penalty lambda with the best accuracy, from coarse to fine (CLIP, appendix A.3).

    Args:
        accuracy: of a penalty, on validation data. Among equals the larger penalty wins.
    """
    found = {float(exponent): accuracy(10.0**exponent) for exponent in _COARSE}
    step = float(_COARSE[1] - _COARSE[0])
    while step > _FINEST:
        step /= 2
        best = max(found, key=lambda exponent: (found[exponent], exponent))
        for exponent in (best - step, best + step):
            if exponent not in found and _COARSE[0] <= exponent <= _COARSE[-1]:
                found[exponent] = accuracy(10.0**exponent)
    best = max(found, key=lambda exponent: (found[exponent], exponent))
    logger.info("lambda 1e%+.3f is best of %d on validation data.", best, len(found))
    return 10.0**best


def open_labelled(embedder: Embedder, spec: str) -> Source:
    """A source with a label for every example, and an example for every class."""
    source = embedder.open(spec)
    if source.labels is None or source.class_names is None:
        raise UserError(f"{spec} has no labels: a probe needs them")
    check_labels(source.labels, len(source.class_names), spec)
    return source


def open_train_and_test(embedder: Embedder, train: str, test: str) -> tuple[Source, Source]:
    """Two labelled sources with the same classes, each class of the second taught by the first."""
    sources = open_labelled(embedder, train), open_labelled(embedder, test)
    check_same_classes(sources[0], train, sources[1], test)
    return sources


def check_same_classes(source: Source, spec: str, other: Source, other_spec: str) -> None:
    """Refuses two sources whose labels do not mean the same, and a class without training data."""
    if source.class_names != other.class_names:
        raise UserError(f"{spec} and {other_spec} have different classes")
    names = source.class_names or []
    untaught = np.setdiff1d(np.asarray(other.labels), np.asarray(source.labels))
    if len(untaught):
        raise UserError(
            f"classes of {other_spec} without an example in {spec}: "
            f"{', '.join(names[i] for i in untaught[:5])}"
        )
