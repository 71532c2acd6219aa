"""Multinomial logistic regression by L-BFGS on the devices of a mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vit_jax.parallel.mesh import batch_sharding, batch_shards, replicated

MAX_ITERATIONS = 1000  # CLIP, appendix A.3
_CHUNK = 65536  # rows that are in memory at once


class LogisticRegression:
    """Fits to one set of features for any penalty; the features stay on the devices.

    Minimises mean cross-entropy + l2 / 2 * |W|^2; the bias is not penalised. scikit-learn's
    `LogisticRegression(C=1 / (l2 * N))` has the same minimum. Rows are split over the devices, so
    that together they hold what one could not.
    """

    def __init__(
        self,
        features: "np.ndarray | Joined",
        labels: np.ndarray,
        *,
        num_classes: int,
        mesh: Mesh,
        scale: np.ndarray | float = 1.0,
        max_iterations: int = MAX_ITERATIONS,
        tolerance: float = 1e-5,
    ):
        """Sends the features to the devices.

        Args:
            features: (N, D), may be memory-mapped: a process reads its devices' rows alone.
            labels: (N,) int.
            num_classes: C.
            mesh: its batch axes hold the rows.
            scale: the penalised weights are those of features divided by it, a number or (D,).
            max_iterations: of L-BFGS.
            tolerance: largest absolute value of the gradient at which it stops. It stops as well
                where float32 shows no further decrease.
        """
        count, width = features.shape
        # The bias is free, so that centred features have the same minimum, and a rounder valley.
        self._mean, _ = moments(features)
        self._scale = np.broadcast_to(np.asarray(scale, np.float32), width)
        parts = batch_shards(mesh)
        padded = -(-count // parts) * parts

        def rows(read: Callable[[slice], np.ndarray], dtype: Any, *shape: int) -> jax.Array:
            """Rows split over the devices; those that fill up the last part are zero."""

            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(padded)
                filled = np.zeros((stop - start, *shape), dtype)
                there = max(0, min(stop, count) - start)
                filled[:there] = read(slice(start, start + there))
                return filled

            return jax.make_array_from_callback((padded, *shape), batch_sharding(mesh), part)

        self._x = rows(lambda part: (features[part] - self._mean) / self._scale, np.float32, width)
        self._y = rows(lambda part: labels[part], np.int32)
        self._weight = rows(lambda part: np.ones(part.stop - part.start), np.float32)
        zeros = np.zeros((width, num_classes), np.float32)
        self._start = zeros, zeros[0]
        self._minimise = jax.jit(
            _minimiser(count, max_iterations, tolerance), out_shardings=replicated(mesh)
        )

    def fit(self, l2: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights (D, C) and bias (C,), float32, for the features as they were given."""
        # Data are arguments, not constants of the compiled program.
        theta = self._minimise(self._start, np.float32(l2), self._x, self._y, self._weight)
        weights, bias = jax.device_get(theta)
        weights = weights / self._scale[:, None]
        return weights, bias - self._mean @ weights


class Joined:
    """Rows of several arrays one after the other, some of them, without a copy.

    Args:
        arrays: each (n, D), may be memory-mapped.
        rows: numbers of the rows to take, counted through all arrays; None for all.
    """

    def __init__(self, arrays: Sequence[np.ndarray], rows: np.ndarray | None = None):
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])
        self._rows = np.arange(self._ends[-1]) if rows is None else rows
        self.shape = (len(self._rows), arrays[0].shape[1])

    def __getitem__(self, part: slice) -> np.ndarray:
        rows = self._rows[part]
        owner = np.searchsorted(self._ends, rows, side="right")
        taken = np.empty((len(rows), self.shape[1]), np.float32)
        for i, array in enumerate(self._arrays):
            taken[owner == i] = array[rows[owner == i] - (self._ends[i] - len(array))]
        return taken


def moments(features: "np.ndarray | Joined") -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column (D,), read a part at a time."""
    total = np.zeros((2, features.shape[1]))
    for start in range(0, features.shape[0], _CHUNK):
        part = np.asarray(features[start : start + _CHUNK], np.float64)
        total += part.sum(axis=0), (part**2).sum(axis=0)
    mean, square = total / features.shape[0]
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return mean.astype(np.float32), std.astype(np.float32)


def predict(features: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The likeliest class of each row (N,), read a part at a time."""
    parts = [features[i : i + _CHUNK] for i in range(0, len(features), _CHUNK)]
    return np.concatenate([np.argmax(part @ weights + bias, axis=1) for part in parts])


def _minimiser(count: int, max_iterations: int, tolerance: float) -> Any:
    solver = optax.lbfgs(memory_size=10)

    def minimise(
        theta: tuple, l2: jax.Array, x: jax.Array, y: jax.Array, weight: jax.Array
    ) -> tuple:
        def value(theta: tuple) -> jax.Array:
            weights, bias = theta
            # The default precision of accelerators is not float32's.
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

        def go_on(carry: tuple) -> jax.Array:
            _, _, i, _, largest, decreased = carry
            return (i < max_iterations) & (largest > tolerance) & decreased

        infinite = jnp.asarray(jnp.inf)
        start = (theta, solver.init(theta), jnp.zeros((), jnp.int32), infinite, infinite, True)
        return jax.lax.while_loop(go_on, step, start)[0]

    return minimise
