"""Linear probe trained with LARS after a BatchNorm without affine (MAE, appendix A.1, table 10)."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float, Int

from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.labels import open_train_and_test
from vit_jax.evaluators.trained_head import TrainedHead
from vit_jax.models.definition import Params
from vit_jax.parallel.mesh import replicated

_EPSILON = 1e-6  # epsilon of the BatchNorm
_BATCH_NORM_MOMENTUM = 0.1  # fraction of a batch in the running statistics, PyTorch's default
_INIT_STD = 0.01


class SgdProbe(TrainedHead):
    """Accuracy of a linear layer trained as MAE's linear probe, on features computed once.

    The published protocol crops the images anew in each epoch, so that the frozen network runs in
    every step: see the recipe `configs/mae_probe_b16.py`. Here each image has one view, that of
    evaluation. Metrics on the test source: `top1`, `mean_per_class_recall`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            train: labelled source on which the layer is trained.
            test: labelled source on which the metrics are computed.
            epochs: passes over the training features; the last incomplete batch of each is dropped.
            warmup_epochs: linear warm-up of the learning rate from 0, epochs; then cosine decay to
                0.
            batch_size: examples per step; at most all training examples.
            base_lr: learning rate per 256 examples: lr = base_lr * batch_size / 256.
            momentum: momentum of LARS.
            seed: PRNG seed of initial weights and order.
        """

        train: str
        test: str
        epochs: int = 90
        warmup_epochs: float = 10.0
        batch_size: int = 16384
        base_lr: float = 0.1
        momentum: float = 0.9
        seed: int = 0

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the sources.

        Args:
            config: keys of the evaluator.
            embedder: computes features of images.

        Raises:
            UserError: sources that do not fit together, or a key with an invalid value.
        """
        epochs, warmup, batch_size = config.epochs, config.warmup_epochs, config.batch_size
        if epochs < 1 or batch_size < 2 or not 0 <= warmup < epochs:
            raise UserError(
                f"epochs={epochs}, warmup_epochs={warmup}, batch_size={batch_size}: expected 1 "
                "epoch or more, a shorter warm-up, and batches of 2 or more"
            )
        self._embedder = embedder
        self._train, self._test = open_train_and_test(embedder, config.train, config.test)
        self._options = dataclasses.asdict(config)
        del self._options["train"], self._options["test"]
        self._options["batch_size"] = min(batch_size, len(self._train))

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        theta = train_head(
            self._embedder.image_features(params, self._train),
            np.asarray(self._train.labels),
            num_classes=len(self._train.class_names or ()),
            mesh=self._embedder.mesh,
            **self._options,
        )
        yield from self._score(params, theta)


def train_head(
    features: Float[np.ndarray, "examples width"],
    labels: Int[np.ndarray, " examples"],
    *,
    num_classes: int,
    mesh: Mesh,
    epochs: int,
    warmup_epochs: float,
    batch_size: int,
    base_lr: float,
    momentum: float,
    seed: int,
) -> tuple[Float[np.ndarray, "width classes"], Float[np.ndarray, " classes"]]:
    """Trains the layer, and folds the BatchNorm into it.

    Every device does all of the work, which is small, so that the result does not depend on the
    number of devices.

    Args:
        features: training features; may be memory-mapped, a step reads its rows only.
        labels: class of each example.
        num_classes: number of classes.
        mesh: devices.
        epochs: passes over the features.
        warmup_epochs: linear warm-up of the learning rate, epochs.
        batch_size: examples per step.
        base_lr: learning rate per 256 examples.
        momentum: momentum of LARS.
        seed: PRNG seed of initial weights and order.

    Returns:
        Weights and bias, for features as they are.
    """
    width, steps = features.shape[1], len(features) // batch_size
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, base_lr * batch_size / 256, round(warmup_epochs * steps), epochs * steps
    )
    # LARS scales the update of the matrix only, not that of the bias.
    optimizer = optax.lars(
        schedule,
        trust_coefficient=0.001,
        trust_ratio_mask={"weights": True, "bias": False},
        momentum=momentum,
    )
    whole = replicated(mesh)
    step = jax.jit(_make_step(optimizer, batch_size), donate_argnums=0, out_shardings=whole)
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
            state = step(state, *(jax.make_array_from_process_local_data(whole, b) for b in batch))
    state = jax.device_get(state)
    weights = state["head"]["weights"] / np.sqrt(state["var"] + _EPSILON)[:, None]
    return weights, state["head"]["bias"] - state["mean"] @ weights


def _make_step(optimizer: optax.GradientTransformation, batch_size: int) -> Any:
    """Builds (state, features, labels) -> state."""

    def step(state: dict[str, Any], x: jax.Array, y: jax.Array) -> dict[str, Any]:
        mean, var = x.mean(axis=0), x.var(axis=0)
        normalized = (x - mean) * jax.lax.rsqrt(var + _EPSILON)

        def loss(head: dict[str, jax.Array]) -> jax.Array:
            logits = jnp.matmul(normalized, head["weights"], precision=jax.lax.Precision.HIGHEST)
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

    return step
