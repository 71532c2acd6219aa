"""Metrics from scores, in NumPy: the same on any number of devices and processes."""

import csv
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

TIE = 1e-5
"""Scores closer than this share of the row's largest one are equal.

Pictures or texts that a model takes for the same have scores that differ by float32 rounding, in a
way that depends on the devices, the processes and the batch size. Ranks must not."""


def tied(scores: np.ndarray, to: np.ndarray) -> np.ndarray:
    """From where on a score of the row counts as no less than `to`, (N, 1).

    Args:
        scores: (N, C); -inf for classes that do not compete.
        to: (N, 1), a score of each row.
    """
    competing = np.isfinite(scores)
    largest = np.max(np.abs(scores), axis=1, keepdims=True, where=competing, initial=0)
    return to - TIE * largest


def predictions(scores: np.ndarray) -> np.ndarray:
    """Column of each row's largest score, (N,); of equal ones the first."""
    return np.argmax(scores >= tied(scores, scores.max(axis=1, keepdims=True)), axis=1)


def rank_of_target(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of the right column in each row, 0 for the best.

    Args:
        scores: (N, C).
        targets: (N,) column of each row.

    Returns:
        (N,) int. Among equal scores the target comes last, so that a constant model scores 0.
    """
    target = np.take_along_axis(scores, targets[:, None], axis=1)
    return np.sum(scores >= tied(scores, target), axis=1) - 1


def classification(
    scores: np.ndarray, targets: np.ndarray, confidences: np.ndarray
) -> Iterator[tuple[str, float]]:
    """Yields top1, top5, mean_per_class_recall and ece, fractions in [0, 1].

    Args:
        scores: (N, C), the largest is the prediction.
        targets: (N,) right column.
        confidences: (N, C) probabilities, as the model means them.
    """
    ranks = rank_of_target(scores, targets)
    yield "top1", float(np.mean(ranks < 1))
    yield "top5", float(np.mean(ranks < 5))
    yield "mean_per_class_recall", mean_per_class_recall(ranks < 1, targets)
    best = predictions(scores)
    confidence = np.take_along_axis(confidences, best[:, None], axis=1)[:, 0]
    yield "ece", expected_calibration_error(confidence, ranks < 1)


def mean_per_class_recall(correct: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the classes that occur of the fraction of their examples that are right.

    Args:
        correct: (N,) bool.
        targets: (N,) int.
    """
    count = np.bincount(targets)
    right = np.bincount(targets, weights=correct)
    return float(np.mean(right[count > 0] / count[count > 0]))


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equally wide bins (Guo et al. 2017, eq. 3).

    Args:
        confidence: (N,) probability of the prediction, in [0, 1].
        correct: (N,) bool.
        bins: (k/bins, (k+1)/bins] is one bin; 0 belongs to the first.
    """
    confidence = confidence.astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over classes of the average precision; classes without a positive example are left out.

    Average precision is the sum over thresholds of precision times the growth of recall, without
    interpolation; examples of equal score pass a threshold together, as in scikit-learn.

    Args:
        scores: (N, C).
        targets: (N, C) bool, several may be right.
    """
    found = [
        average_precision(scores[:, column], targets[:, column])
        for column in range(scores.shape[1])
        if targets[:, column].any()
    ]
    return float(np.mean(found))


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Of one class, see `mean_average_precision`. Both arguments are (N,)."""
    order = np.argsort(-scores, kind="stable")
    ordered, right = scores[order], np.cumsum(targets[order])
    last_of_score = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    right = right[last_of_score]
    precision = right / (last_of_score + 1)
    return float(np.sum(precision * np.diff(right, prepend=0)) / right[-1])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Elementwise, float64, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def write_confusion(
    path: str | pathlib.Path, predicted: np.ndarray, targets: np.ndarray, names: Sequence[str]
) -> None:
    """Writes the confusion matrix as CSV: a row a true class, a column a predicted one.

    Args:
        path: of the file.
        predicted: (N,) int.
        targets: (N,) int.
        names: of the classes.
    """
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (targets, predicted), 1)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
