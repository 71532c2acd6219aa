"""Sigmoid focal loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
