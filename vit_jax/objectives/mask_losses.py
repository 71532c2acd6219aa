"""Losses of masks: focal and dice, and the quality of a prediction."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vit_jax.objectives.focal import sigmoid_focal_loss


def mask_focal_loss(
    logits: Float[Array, "*shape height width"],
    targets: Bool[Array, "*shape height width"],
    valid: Bool[Array, "*shape height width"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*shape"]:
    """Mean over the valid cells of the focal loss (Lin et al. 2017).

    Args:
        logits: logits of masks.
        targets: masks to predict.
        valid: cells that count.
        alpha: weight of cells of the mask; others have 1 - alpha.
        gamma: exponent of the error.

    Returns:
        Loss of each mask, float32; 0 without a valid cell.
    """
    losses = sigmoid_focal_loss(logits.astype(jnp.float32), targets, alpha=alpha, gamma=gamma)
    total = jnp.sum(losses, axis=(-2, -1), where=valid)
    return total / jnp.maximum(jnp.sum(valid, axis=(-2, -1)), 1)


def dice_loss(
    logits: Float[Array, "*shape height width"],
    targets: Bool[Array, "*shape height width"],
    valid: Bool[Array, "*shape height width"],
) -> Float[Array, "*shape"]:
    """1 - (2 |p t| + 1) / (|p| + |t| + 1) over the valid cells (Milletari et al. 2016).

    The sum of probabilities and the smoothing by 1 are those of MaskFormer and SAM.

    Args:
        logits: logits of masks.
        targets: masks to predict.
        valid: cells that count.

    Returns:
        Loss of each mask, float32.
    """
    probability = jnp.where(valid, jax.nn.sigmoid(logits.astype(jnp.float32)), 0)
    wanted = targets & valid
    common = jnp.sum(probability, axis=(-2, -1), where=wanted)
    sizes = jnp.sum(probability, axis=(-2, -1)) + jnp.sum(wanted, axis=(-2, -1))
    return 1 - (2 * common + 1) / (sizes + 1)


def mask_iou(
    found: Bool[Array, "*shape height width"],
    targets: Bool[Array, "*shape height width"],
    valid: Bool[Array, "*shape height width"],
) -> Float[Array, "*shape"]:
    """Intersection over union of the valid cells.

    Args:
        found: predicted masks.
        targets: masks to predict.
        valid: cells that count.

    Returns:
        float32 in [0, 1]; 0 for two empty masks.
    """
    intersection = jnp.sum(found & targets & valid, axis=(-2, -1))
    union = jnp.sum((found | targets) & valid, axis=(-2, -1))
    return intersection / jnp.maximum(union, 1)
