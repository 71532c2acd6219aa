"""Multinomial logistic regression by L-BFGS on the devices of a mesh."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float, Int

from vit_jax.parallel.mesh import batch_sharding, batch_shards, replicated

MAX_ITERATIONS = 1000  # CLIP, appendix A.3
_CHUNK = 65536  # rows in memory at once


class LogisticRegression:
    """A logistic regression on one set of features, for any penalty.

    Minimizes mean cross-entropy + l2 / 2 * |W|^2; the bias is not penalized. scikit-learn's
    `LogisticRegression(C=1 / (l2 * N))` has the same minimum. The features stay on the
    devices, and their rows are split over them.
    """

    def __init__(
        self,
        features: "Rows",
        labels: Int[np.ndarray, " rows"],
        *,
        num_classes: int,
        mesh: Mesh,
        scale: np.ndarray | float = 1.0,
        max_iterations: int = MAX_ITERATIONS,
        tolerance: float = 1e-5,
    ):
        """Sends the features to the devices.

        Args:
            features: features (N, D); may be memory-mapped, a process reads the rows of its devices
                only.
            labels: class of each row.
            num_classes: number of classes C.
            mesh: devices; the rows are split over its batch axes.
            scale: divisor of the features, a number or (D,); the penalty applies to the weights of
                the divided features.
            max_iterations: largest number of L-BFGS iterations.
            tolerance: largest absolute value of the gradient at which iteration stops. It also
                stops when the loss no longer decreases in float32.
        """
        count, width = features.shape
        # The bias is not penalized, so centered features have the same minimum, better conditioned.
        self._mean, _ = moments(features)
        self._scale = np.broadcast_to(np.asarray(scale, np.float32), width)
        parts = batch_shards(mesh)
        padded = -(-count // parts) * parts

        def rows(read: Callable[[slice], np.ndarray], dtype: Any, *shape: int) -> jax.Array:
            """Makes an array whose rows are split over the devices, padded with zeros."""

            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(padded)
                filled = np.zeros((stop - start, *shape), dtype)
                present = max(0, min(stop, count) - start)
                filled[:present] = read(slice(start, start + present))
                return filled

            return jax.make_array_from_callback((padded, *shape), batch_sharding(mesh), part)

        self._x = rows(lambda part: (features[part] - self._mean) / self._scale, np.float32, width)
        self._y = rows(lambda part: labels[part], np.int32)
        self._weight = rows(lambda part: np.ones(part.stop - part.start), np.float32)
        zeros = np.zeros((width, num_classes), np.float32)
        self._start = zeros, zeros[0]
        self._minimize = jax.jit(
            _make_minimizer(count, max_iterations, tolerance), out_shardings=replicated(mesh)
        )

    def fit(
        self, l2: float
    ) -> tuple[Float[np.ndarray, "width classes"], Float[np.ndarray, " classes"]]:
        """Fits weights and bias, float32, for the features as they were given.

        Args:
            l2: factor of the penalty.
        """
        # The data are arguments: as constants they would be part of the compiled program.
        theta = self._minimize(self._start, np.float32(l2), self._x, self._y, self._weight)
        weights, bias = jax.device_get(theta)
        weights = weights / self._scale[:, None]
        return weights, bias - self._mean @ weights


class Joined:
    """Rows of several arrays, read without a copy of the whole.

    Attributes:
        shape: number of rows and their width.
    """

    def __init__(self, arrays: Sequence[np.ndarray], rows: Int[np.ndarray, " rows"] | None = None):
        """Declares the rows.

        Args:
            arrays: arrays (n, D); may be memory-mapped.
            rows: rows to take, numbered through all arrays; None for all.
        """
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])
        self._rows = np.arange(self._ends[-1]) if rows is None else rows
        self.shape = (len(self._rows), arrays[0].shape[1])

    def __getitem__(self, part: slice) -> Float[np.ndarray, "rows width"]:
        """Reads rows, as float32."""
        rows = self._rows[part]
        owner = np.searchsorted(self._ends, rows, side="right")
        taken = np.empty((len(rows), self.shape[1]), np.float32)
        for i, array in enumerate(self._arrays):
            taken[owner == i] = array[rows[owner == i] - (self._ends[i] - len(array))]
        return taken


Rows = Float[np.ndarray, "rows width"] | Joined


def moments(features: Rows) -> tuple[Float[np.ndarray, " width"], Float[np.ndarray, " width"]]:
    """Computes mean and standard deviation of each column, reading a chunk at a time."""
    total = np.zeros((2, features.shape[1]))
    for start in range(0, features.shape[0], _CHUNK):
        part = np.asarray(features[start : start + _CHUNK], np.float64)
        total += part.sum(axis=0), (part**2).sum(axis=0)
    mean, square = total / features.shape[0]
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return mean.astype(np.float32), std.astype(np.float32)


def class_logits(
    features: Float[np.ndarray, "rows width"],
    weights: Float[np.ndarray, "width classes"],
    bias: Float[np.ndarray, " classes"],
) -> Float[np.ndarray, "rows classes"]:
    """Computes the logits of each row, reading a chunk at a time."""
    return np.concatenate(list(_chunks_of_logits(features, weights, bias)))


def predict(
    features: Float[np.ndarray, "rows width"],
    weights: Float[np.ndarray, "width classes"],
    bias: Float[np.ndarray, " classes"],
) -> Int[np.ndarray, " rows"]:
    """Predicts the class of each row; the logits of a chunk are in memory at a time."""
    chunks = _chunks_of_logits(features, weights, bias)
    return np.concatenate([np.argmax(logits, axis=1) for logits in chunks])


def _chunks_of_logits(
    features: np.ndarray, weights: np.ndarray, bias: np.ndarray
) -> Iterator[np.ndarray]:
    for start in range(0, len(features), _CHUNK):
        yield features[start : start + _CHUNK] @ weights + bias


def _make_minimizer(count: int, max_iterations: int, tolerance: float) -> Any:
    """Builds (theta, l2, features, labels, row weights) -> theta at the minimum."""
    solver = optax.lbfgs(memory_size=10)

    def minimize(
        theta: tuple, l2: jax.Array, x: jax.Array, y: jax.Array, weight: jax.Array
    ) -> tuple:
        def value(theta: tuple) -> jax.Array:
            weights, bias = theta
            # The default precision of accelerators is less than float32.
            logits = jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST) + bias
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses @ weight / count + 0.5 * l2 * jnp.sum(weights**2)

        value_and_grad = optax.value_and_grad_from_state(value)

        def step(carry: tuple) -> tuple:
            theta, state, i, before, _, _ = carry
            loss, grad = value_and_grad(theta, state=state)
            updates, state = solver.update(
                grad, state, theta, value=loss, grad=grad, value_fn=value
            )
            largest = jnp.max(jnp.asarray([jnp.max(jnp.abs(g)) for g in grad]))
            return optax.apply_updates(theta, updates), state, i + 1, loss, largest, loss < before

        def unfinished(carry: tuple) -> jax.Array:
            _, _, i, _, largest, decreased = carry
            return (i < max_iterations) & (largest > tolerance) & decreased

        infinite = jnp.asarray(jnp.inf)
        start = (theta, solver.init(theta), jnp.zeros((), jnp.int32), infinite, infinite, True)
        return jax.lax.while_loop(unfinished, step, start)[0]

    return minimize
