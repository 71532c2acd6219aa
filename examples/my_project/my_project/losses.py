"""Losses of the project."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError
from vit_jax.objectives.base import Batch, Context, Metrics, Objective


class PolyLoss(Objective):
    """Poly-1 cross-entropy (Leng et al. 2022, "PolyLoss", equation 4).

    Metrics: `accuracy`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            epsilon: weight of the term 1 - p, with p the probability of the label.
        """

        epsilon: float = 1.0

    fields = ("image", "label")

    def __init__(self, config: Config, context: Context) -> None:
        """Checks that the model has a classification head."""
        super().__init__(config, context)
        if not context.num_classes:
            raise UserError("PolyLoss needs a classifier: set config.model.num_classes")

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Any
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of `image` and `label`."""

        def classify(model: Any, images: jax.Array, rng: jax.Array | None) -> tuple[jax.Array]:
            return (model(images, rng=rng),)

        (logits,) = self.context.microbatches.run(classify, model, (self.images(batch),), rng)
        labels = batch["label"]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss = cross_entropy + self.config.epsilon * (1.0 - jnp.exp(-cross_entropy))
        correct = jnp.argmax(logits, axis=-1) == labels
        return jnp.mean(loss), {"accuracy": jnp.mean(correct)}
