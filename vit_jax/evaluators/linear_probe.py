"""Linear probe: logistic regression on frozen features (CLIP, appendix A.3)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.functional import Params


class LinearProbe:
    """Accuracy of a linear classifier trained on the image tower's features.

    Features are taken before the projection into the joint space. Metric: `top1`, on the test
    source.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        train: str,
        test: str,
        l2: float = 1e-3,
        max_iterations: int = 200,
    ):
        """Opens both sources.

        Args:
            embedder: of pictures.
            train: labelled source the classifier is trained on.
            test: labelled source it is measured on.
            l2: strength of the penalty l2 / 2 * |W|^2, beside the mean cross-entropy.
            max_iterations: of L-BFGS.
        """
        self._embedder, self._l2, self._max_iterations = embedder, l2, max_iterations
        self._train, self._test = open_source(train), open_source(test)
        for spec, source in ((train, self._train), (test, self._test)):
            if source.labels is None:
                raise UserError(f"{spec} has no labels: a probe needs them")
        if self._train.class_names != self._test.class_names:
            raise UserError(f"{train} and {test} have different classes")

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields top1."""
        train = self._embedder.features(params, self._train)
        test = self._embedder.features(params, self._test)
        mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
        assert self._train.labels is not None
        assert self._test.labels is not None
        weights, bias = fit_logistic_regression(
            (train - mean) / std,
            self._train.labels,
            num_classes=len(self._train.class_names or ()),
            l2=self._l2,
            max_iterations=self._max_iterations,
        )
        predicted = np.argmax((test - mean) / std @ weights + bias, axis=1)
        yield "top1", float(np.mean(predicted == self._test.labels))


def fit_logistic_regression(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    l2: float,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression by L-BFGS, on the accelerator.

    Minimises mean cross-entropy + l2 / 2 * |W|^2; the bias is not penalised. scikit-learn's
    `LogisticRegression(C=1 / (l2 * N))` has the same minimum.

    Args:
        features: (N, D).
        labels: (N,) int.
        num_classes: C.
        l2: penalty.
        max_iterations: of L-BFGS.
        tolerance: largest absolute value of the gradient at which it stops.

    Returns:
        Weights (D, C) and bias (C,).
    """
    x, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
    solver = optax.lbfgs(memory_size=10)

    # Data are arguments, not constants of the compiled program.
    def objective(theta: tuple, x: jax.Array, y: jax.Array) -> jax.Array:
        weights, bias = theta
        losses = optax.softmax_cross_entropy_with_integer_labels(x @ weights + bias, y)
        return losses.mean() + 0.5 * l2 * jnp.sum(weights**2)

    @jax.jit
    def minimise(theta: tuple, x: jax.Array, y: jax.Array) -> tuple:
        def value(theta: tuple) -> jax.Array:
            return objective(theta, x, y)

        value_and_grad = optax.value_and_grad_from_state(value)

        def step(carry: tuple) -> tuple:
            theta, state, count, _ = carry
            loss, grad = value_and_grad(theta, state=state)
            updates, state = solver.update(
                grad, state, theta, value=loss, grad=grad, value_fn=value
            )
            largest = jnp.max(jnp.asarray([jnp.max(jnp.abs(g)) for g in grad]))
            return optax.apply_updates(theta, updates), state, count + 1, largest

        def go_on(carry: tuple) -> jax.Array:
            _, _, count, largest = carry
            return (count < max_iterations) & (largest > tolerance)

        start = (theta, solver.init(theta), jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf))
        return jax.lax.while_loop(go_on, step, start)[0]

    zeros = (jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes))
    weights, bias = minimise(zeros, x, y)
    return np.asarray(weights), np.asarray(bias)
