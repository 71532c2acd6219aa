"""Metrics computed from scores in NumPy.

The inputs are whole arrays on every process, so that a metric does not depend on the number of
devices or processes.
"""

import csv
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from vit_jax.atomic_files import atomic_write
from vit_jax.paths import StrPath

TIE = 1e-5
"""Scores that differ by less than this fraction of the largest score of their row are equal.

Images or texts that a model does not distinguish have scores that differ by float32 rounding
errors. These errors depend on the number of devices, the number of processes and the batch size.
Ranks must not depend on them."""


def tie_threshold(
    scores: Float[np.ndarray, "rows columns"], reference: Float[np.ndarray, "rows 1"]
) -> Float[np.ndarray, "rows 1"]:
    """Computes the smallest score that counts as equal to a reference score.

    Args:
        scores: scores; -inf for classes that are excluded.
        reference: one score of each row.

    Returns:
        `reference` minus the tolerance of the row.
    """
    largest = np.max(np.abs(scores), axis=1, keepdims=True, where=np.isfinite(scores), initial=0)
    return reference - TIE * largest


def predictions(scores: Float[np.ndarray, "rows columns"]) -> Int[np.ndarray, " rows"]:
    """Returns the column of the largest score of each row; among equal scores the first."""
    return np.argmax(scores >= tie_threshold(scores, scores.max(axis=1, keepdims=True)), axis=1)


def text_content(text: str) -> str:
    """Content of a caption or class name: texts that differ in case and white space are equal."""
    return " ".join(text.casefold().split())


def rank_of_target(
    scores: Float[np.ndarray, "rows columns"],
    targets: Int[np.ndarray, " rows"],
    names: Sequence[str] = (),
) -> Int[np.ndarray, " rows"]:
    """Computes the rank of the correct column in each row.

    Args:
        scores: scores of all columns.
        targets: correct column of each row.
        names: content of each column, see `best_rank`.

    Returns:
        Ranks, 0 for the best, see `best_rank`.
    """
    return best_rank(scores, targets[:, None] == np.arange(scores.shape[1]), names)


def best_rank(
    scores: Float[np.ndarray, "rows columns"],
    correct: Bool[np.ndarray, "rows columns"],
    names: Sequence[str] = (),
) -> Int[np.ndarray, " rows"]:
    """Computes the rank of the best correct column in each row.

    Args:
        scores: scores of all columns.
        correct: whether each column is correct; at least one per row is.
        names: content of each column, as the name of a class or a caption. Columns of equal content
            always have equal scores. (): no two are equal.

    Returns:
        Ranks, 0 for the best. Incorrect columns of equal score come first, so that a constant model
        has an accuracy of 0; but among columns of equal content the first one comes first, as in
        published results, which are those of `argmax`.
    """
    best = np.max(np.where(correct, scores, -np.inf), axis=1, keepdims=True)
    ahead = (scores >= tie_threshold(scores, best)) & ~correct
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        groups.setdefault(name, []).append(column)
    for columns in groups.values():
        if len(columns) > 1:
            ahead[:, columns] &= ~np.logical_or.accumulate(correct[:, columns], axis=1)
    return np.sum(ahead, axis=1)


def classification(
    scores: Float[np.ndarray, "examples classes"],
    targets: Int[np.ndarray, " examples"],
    probabilities: Float[np.ndarray, "examples classes"],
    names: Sequence[str] = (),
) -> Iterator[tuple[str, float]]:
    """Computes the metrics of single-label classification.

    Args:
        scores: scores; the class with the largest one is the prediction.
        targets: correct class of each example.
        probabilities: probability of each class according to the model.
        names: content of the classes, see `best_rank`.

    Yields:
        `top1`, `top5`, `mean_per_class_recall` and `ece`, fractions in [0, 1].
    """
    ranks = rank_of_target(scores, targets, names)
    yield "top1", float(np.mean(ranks < 1))
    yield "top5", float(np.mean(ranks < 5))
    yield "mean_per_class_recall", mean_per_class_recall(ranks < 1, targets)
    predicted = predictions(scores)
    confidence = np.take_along_axis(probabilities, predicted[:, None], axis=1)[:, 0]
    yield "ece", expected_calibration_error(confidence, ranks < 1)


def mean_per_class_recall(
    correct: Bool[np.ndarray, " examples"], targets: Int[np.ndarray, " examples"]
) -> float:
    """Averages the accuracy of each class over the classes that occur.

    Args:
        correct: whether the prediction of each example is correct.
        targets: correct class of each example.
    """
    count = np.bincount(targets)
    num_correct = np.bincount(targets, weights=correct)
    return float(np.mean(num_correct[count > 0] / count[count > 0]))


def expected_calibration_error(
    confidence: Float[np.ndarray, " examples"],
    correct: Bool[np.ndarray, " examples"],
    bins: int = 15,
) -> float:
    """Computes the mean gap between confidence and accuracy (Guo et al. 2017, equation 3).

    Args:
        confidence: probability of the predicted class, in [0, 1].
        correct: whether the prediction of each example is correct.
        bins: number of bins of equal width; bin k holds confidences in (k / bins, (k + 1) / bins],
            and the first bin 0 as well.
    """
    sums, hits, _ = calibration_bins(confidence, correct, bins)
    return float(np.abs(sums - hits).sum() / len(confidence))


def calibration_bins(
    confidence: Float[np.ndarray, " examples"],
    correct: Bool[np.ndarray, " examples"],
    bins: int = 15,
) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"], Int[np.ndarray, " bins"]]:
    """Sorts predictions into bins of equal width, see `expected_calibration_error`.

    Args:
        confidence: probability of the predicted class, in [0, 1].
        correct: whether the prediction of each example is correct.
        bins: number of bins.

    Returns:
        By bin: sum of the confidences, number of correct predictions, number of predictions.
    """
    confidence = confidence.astype(np.float64)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return (
        np.bincount(index, weights=confidence, minlength=bins),
        np.bincount(index, weights=correct, minlength=bins),
        np.bincount(index, minlength=bins),
    )


def mean_average_precision(
    scores: Float[np.ndarray, "examples classes"], targets: Bool[np.ndarray, "examples classes"]
) -> float:
    """Averages the average precision over the classes that have a positive example.

    Args:
        scores: scores of all classes.
        targets: whether each class applies to each example.
    """
    return float(
        np.mean(
            [
                average_precision(scores[:, column], targets[:, column])
                for column in range(scores.shape[1])
                if targets[:, column].any()
            ]
        )
    )


def average_precision(
    scores: Float[np.ndarray, " examples"], targets: Bool[np.ndarray, " examples"]
) -> float:
    """Computes the average precision of one class, as scikit-learn does.

    It is the sum over thresholds of the precision times the increase of recall, without
    interpolation. Examples of equal score pass a threshold together.

    Args:
        scores: score of each example.
        targets: whether the class applies to each example; at least one is positive.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, positives = scores[order], np.cumsum(targets[order])
    last_of_score = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    positives = positives[last_of_score]
    precision = positives / (last_of_score + 1)
    return float(np.sum(precision * np.diff(positives, prepend=0)) / positives[-1])


def softmax(logits: Float[np.ndarray, "*batch classes"]) -> Float[np.ndarray, "*batch classes"]:
    """Computes the softmax over the last axis in float64."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(logits: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Computes the sigmoid of each element in float64, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def write_confusion(
    path: StrPath,
    predicted: Int[np.ndarray, " examples"],
    targets: Int[np.ndarray, " examples"],
    names: Sequence[str],
) -> None:
    """Writes the confusion matrix as CSV, one row per true class, one column per predicted class.

    Args:
        path: CSV file, local or in a bucket; its folder is created.
        predicted: predicted class of each example.
        targets: correct class of each example.
        names: names of the classes.
    """
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (targets, predicted), 1)
    with (
        atomic_write(path) as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
