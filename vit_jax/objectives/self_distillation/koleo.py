"""The KoLeo regulariser (Sablayrolles et al. 2018, arXiv:1806.03198, section 3.3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.partitioning import constrain
from vit_jax.objectives.contrastive.logits import product

_EPSILON = 1e-8  # DINOv2's; on a distance and in its logarithm


def koleo(features: Float[Array, "batch width"]) -> Float[Array, ""]:
    """Minus the mean log distance of each example to its nearest neighbour in the batch.

    It spreads the features over the sphere (Kozachenko-Leonenko estimator of their entropy). The
    neighbour is that of the global batch; DINOv2's code looks for it in the batch of each device.

    Args:
        features: features of different images, at least two, of any length.

    Returns:
        float32 ().
    """
    x = features.astype(jnp.float32)
    x = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + _EPSILON)
    everyone = constrain(x, None, None)
    cosines = jax.lax.stop_gradient(product("id,jd->ij", x, everyone))
    cosines = jnp.where(jnp.eye(len(x), dtype=bool), -2.0, cosines)
    nearest = everyone[jnp.argmax(cosines, axis=1)]
    distance = jnp.linalg.norm(x - nearest + _EPSILON, axis=-1)
    return -jnp.mean(jnp.log(distance + _EPSILON))
