"""Speed of the linear probe's logistic regression compared with scikit-learn's.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/probe_speed.py

Both fit the same data on the same cores, from zero and with their defaults. Features are drawn from
one normal distribution per class, with columns of different scales as in a network. Times include
data transfer and compilation.
"""

import time
import warnings

import numpy as np
from absl import flags
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as Reference

from vit_jax import cli
from vit_jax.evaluators import metrics
from vit_jax.evaluators.logistic import LogisticRegression, predict
from vit_jax.parallel.mesh import make_mesh

_EXAMPLES = flags.DEFINE_integer(
    "examples", 50_000, "Training examples; a fifth of that for testing."
)
_WIDTH = flags.DEFINE_integer("width", 768, "Number of features.")
_CLASSES = flags.DEFINE_integer("classes", 100, "Number of classes.")
_L2 = flags.DEFINE_float("l2", 1e-4, "Weight of the L2 penalty.")
_MAX_ITERATIONS = flags.DEFINE_integer("max_iterations", 1000, "Limit for both solvers.")


def features(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws features and labels.

    Args:
        rng: generator.
        count: number of examples.

    Returns:
        Features (count, width), float32, and labels (count,).
    """
    fixed = np.random.default_rng(0)
    centres = fixed.normal(size=(_CLASSES.value, _WIDTH.value))
    size, offset = np.exp(0.5 * fixed.normal(size=(2, _WIDTH.value)))
    labels = rng.integers(0, _CLASSES.value, count)
    x = (0.12 * centres[labels] + rng.normal(size=(count, _WIDTH.value))) * size + offset
    return x.astype(np.float32), labels


def main() -> None:
    """Fits both and prints one line for each."""
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
    cli.run(main)
