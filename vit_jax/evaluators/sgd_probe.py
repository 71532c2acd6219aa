"""Linear probe by LARS behind a BatchNorm without affine (MAE, appendix A.1, table 10)."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vit_jax.errors import UserError
from vit_jax.evaluators import metrics
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.linear_probe import open_train_and_test
from vit_jax.evaluators.logistic import predict
from vit_jax.models.definition import Params
from vit_jax.parallel.mesh import replicated

_EPSILON = 1e-6  # of the BatchNorm
_BATCH_NORM_MOMENTUM = 0.1  # fraction of a batch in the running statistics, PyTorch's default
_INIT_STD = 0.01


class SgdProbe:
    """Accuracy of a linear layer trained as MAE's linear probe, on features computed once.

    The published protocol crops the images anew in each epoch, for which the frozen network has
    to run in every step: that is training with a frozen backbone. Here each image has one view,
    the evaluation's. Metrics on the test source: `top1`, `mean_per_class_recall`.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        train: str,
        test: str,
        epochs: int = 90,
        warmup_epochs: float = 10.0,
        batch_size: int = 16384,
        base_lr: float = 0.1,
        momentum: float = 0.9,
        seed: int = 0,
    ):
        """Opens the sources.

        Args:
            embedder: of images.
            train: labelled source.
            test: labelled source.
            epochs: passes over the training features; the last incomplete batch of one is left out.
            warmup_epochs: of the learning rate, linear from 0; then cosine to 0.
            batch_size: examples a step, no more than there are.
            base_lr: the learning rate is base_lr * batch_size / 256.
            momentum: of LARS.
            seed: of the initial weights and of the order.
        """
        if epochs < 1 or batch_size < 2 or not 0 <= warmup_epochs < epochs:
            raise UserError(
                f"epochs={epochs}, warmup_epochs={warmup_epochs}, batch_size={batch_size}: "
                "expected epochs of 1 or more, a shorter warm-up, and batches of 2 or more"
            )
        self._embedder = embedder
        self._train, self._test = open_train_and_test(embedder, train, test)
        self._options: dict[str, Any] = {
            "epochs": epochs,
            "warmup_epochs": warmup_epochs,
            "batch_size": min(batch_size, len(self._train)),
            "base_lr": base_lr,
            "momentum": momentum,
            "seed": seed,
        }

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics."""
        theta = train_head(
            self._embedder.features(params, self._train),
            np.asarray(self._train.labels),
            num_classes=len(self._train.class_names or ()),
            mesh=self._embedder.mesh,
            **self._options,
        )
        labels = np.asarray(self._test.labels)
        correct = predict(self._embedder.features(params, self._test), *theta) == labels
        yield "top1", float(np.mean(correct))
        yield "mean_per_class_recall", metrics.mean_per_class_recall(correct, labels)


def train_head(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    mesh: Mesh,
    epochs: int,
    warmup_epochs: float,
    batch_size: int,
    base_lr: float,
    momentum: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Trains, and folds the BatchNorm into the layer: weights (D, C) and bias (C,).

    Every device does the whole of the little work, so that the result does not depend on their
    number. A step reads its rows of `features` (N, D), which may be memory-mapped.
    """
    width, steps = features.shape[1], len(features) // batch_size
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, base_lr * batch_size / 256, round(warmup_epochs * steps), epochs * steps
    )
    matrices = {"weights": True, "bias": False}
    optimizer = optax.lars(
        schedule, trust_coefficient=0.001, trust_ratio_mask=matrices, momentum=momentum
    )

    def step(state: dict[str, Any], x: jax.Array, y: jax.Array) -> dict[str, Any]:
        mean, var = x.mean(axis=0), x.var(axis=0)
        normal = (x - mean) * jax.lax.rsqrt(var + _EPSILON)

        def loss(head: dict[str, jax.Array]) -> jax.Array:
            logits = jnp.matmul(normal, head["weights"], precision=jax.lax.Precision.HIGHEST)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits + head["bias"], y)
            return losses.mean()

        grads = jax.grad(loss)(state["head"])
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["head"])
        unbiased = var * (batch_size / (batch_size - 1))
        return {
            "head": optax.apply_updates(state["head"], updates),
            "optimizer": optimizer_state,
            "mean": state["mean"] + _BATCH_NORM_MOMENTUM * (mean - state["mean"]),
            "var": state["var"] + _BATCH_NORM_MOMENTUM * (unbiased - state["var"]),
        }

    whole = replicated(mesh)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=whole)
    head = {
        "weights": _INIT_STD
        * jax.random.truncated_normal(jax.random.key(seed), -2, 2, (width, num_classes)),
        "bias": jnp.zeros(num_classes),
    }
    state = {"head": head, "optimizer": optimizer.init(head)}
    state |= {"mean": jnp.zeros(width), "var": jnp.ones(width)}
    state = jax.device_get(state)
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(features))
        for i in range(steps):
            rows = np.sort(order[i * batch_size : (i + 1) * batch_size])
            batch = np.asarray(features[rows]), labels[rows].astype(np.int32)
            state = compiled(
                state, *(jax.make_array_from_process_local_data(whole, b) for b in batch)
            )
    state = jax.device_get(state)
    scale = 1 / np.sqrt(state["var"] + _EPSILON)
    weights = state["head"]["weights"] * scale[:, None]
    return weights, state["head"]["bias"] - state["mean"] @ weights
