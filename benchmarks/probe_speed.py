"""Logistic regression of a linear probe beside scikit-learn's, on the same data and cores.

env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/probe_speed.py

Features are drawn from one normal distribution a class, with columns of unequal size as those of a
network. Both start from zero with their defaults; times include sending the data and compiling.
"""

import time
import warnings

import numpy as np
from absl import app, flags
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as Reference

from vit_jax.evaluators import metrics
from vit_jax.evaluators.logistic import LogisticRegression, predict
from vit_jax.parallel.mesh import make_mesh

_EXAMPLES = flags.DEFINE_integer("examples", 50_000, "Training examples; a fifth more for testing.")
_WIDTH = flags.DEFINE_integer("width", 768, "Features.")
_CLASSES = flags.DEFINE_integer("classes", 100, "Classes.")
_L2 = flags.DEFINE_float("l2", 1e-4, "Penalty beside the mean cross-entropy.")
_MAX_ITERATIONS = flags.DEFINE_integer("max_iterations", 1000, "Of either.")


def features(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (count, width), float32, and labels (count,)."""
    fixed = np.random.default_rng(0)
    centres = fixed.normal(size=(_CLASSES.value, _WIDTH.value))
    size, offset = np.exp(0.5 * fixed.normal(size=(2, _WIDTH.value)))
    labels = rng.integers(0, _CLASSES.value, count)
    x = (0.12 * centres[labels] + rng.normal(size=(count, _WIDTH.value))) * size + offset
    return x.astype(np.float32), labels


def main(argv: list[str]) -> None:
    """Fits both and prints a line each."""
    del argv
    rng = np.random.default_rng(1)
    x, y = features(rng, _EXAMPLES.value)
    test, test_y = features(rng, _EXAMPLES.value // 5)
    print(f"{len(x)} x {x.shape[1]} features, {_CLASSES.value} classes, l2 {_L2.value}")

    def report(name: str, seconds: float, weights: np.ndarray, bias: np.ndarray) -> None:
        p = metrics.softmax(x.astype(np.float64) @ weights + bias)
        loss = -np.log(p[np.arange(len(y)), y]).mean() + _L2.value / 2 * np.sum(weights**2)
        accuracy = np.mean(predict(test, weights, bias) == test_y)
        print(f"{name:<13} {seconds:8.1f} s  loss {loss:.6f}  test accuracy {accuracy:.4f}")

    start = time.monotonic()
    ours = LogisticRegression(
        x, y, num_classes=_CLASSES.value, mesh=make_mesh(), max_iterations=_MAX_ITERATIONS.value
    )
    weights, bias = ours.fit(_L2.value)
    seconds = time.monotonic() - start
    report("vit_jax", seconds, weights, bias)

    start = time.monotonic()
    reference = Reference(C=1 / (_L2.value * len(x)), max_iter=_MAX_ITERATIONS.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reference.fit(x, y)
    taken = time.monotonic() - start
    report("scikit-learn", taken, reference.coef_.T, reference.intercept_)
    print(f"scikit-learn took {taken / seconds:.1f} times as long, {reference.n_iter_[0]} steps")


if __name__ == "__main__":
    app.run(main)
