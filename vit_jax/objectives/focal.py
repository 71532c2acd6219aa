"""Sigmoid focal loss, and the keys of objectives that use it."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vit_jax.objectives.base import Metrics, Objective, check_range


def sigmoid_focal_loss(
    logits: Float[Array, "*shape"],
    targets: Bool[Array, "*shape"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*shape"]:
    """Binary cross-entropy that weighs predictions by their error (Lin et al. 2017, section 3.2).

    The loss of optax, which also takes soft targets, stacks arrays in a last dimension of 2, which
    TPUs pad to 128. Gradients are finite for any finite logit and exponent.

    Args:
        logits: logits of the positive class.
        targets: whether each is positive.
        alpha: weight of positives; negatives have 1 - alpha.
        gamma: exponent of the error, the probability of the wrong class; 0 for cross-entropy.

    Returns:
        Loss of each logit.
    """
    signed = jnp.where(targets, logits, -logits)
    weight = jnp.where(targets, alpha, 1 - alpha)
    error = jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    return -weight * error * jax.nn.log_sigmoid(signed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FocalConfig(Objective.Config):
    """Keys of objectives that add up a focal loss and others.

    Attributes:
        focal_alpha: weight of targets 1; targets 0 have 1 - focal_alpha (Lin et al. 2017).
        focal_gamma: exponent of the error by which the focal loss weighs a prediction.
    """

    focal_alpha: float = 0.25
    focal_gamma: float = 2.0

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            UserError: a negative one, an integer below 1, or `focal_alpha` above 1.
        """
        for field in dataclasses.fields(self):
            least = 1 if field.type is int else 0
            highest = 1.0 if field.name == "focal_alpha" else float("inf")
            check_range(field.name, getattr(self, field.name), least, highest)

    def focal(
        self, logits: Float[Array, "*shape"], targets: Bool[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Computes the focal loss of each logit, see `sigmoid_focal_loss`."""
        return sigmoid_focal_loss(logits, targets, alpha=self.focal_alpha, gamma=self.focal_gamma)

    def total(self, losses: Metrics) -> Float[Array, ""]:
        """Adds up losses, each multiplied by its weight, the key `NAME_weight`."""
        terms = [getattr(self, f"{name}_weight") * x for name, x in losses.items()]
        return sum(terms[1:], terms[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxConfig(FocalConfig):
    """Keys of objectives that learn classes by the focal loss, and boxes.

    Attributes:
        class_weight: weight of the classification loss.
        giou_weight: weight of 1 - GIoU.
    """

    class_weight: float = 1.0
    giou_weight: float = 1.0
