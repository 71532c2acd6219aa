"""The contrastive loss from the N x N matrix of logits, rows split over the batch axes."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vit_jax.objectives.contrastive.logits import pair_logits
from vit_jax.objectives.contrastive.tile_losses import TILE_LOSSES, TileMask


def gathered_loss(
    image: Float[Array, "batch width"],
    text: Float[Array, "batch width"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    loss: str,
    mesh: Mesh | None,
    batch_axes: tuple[str, ...],
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
    """Loss and metrics, see `contrastive_loss`.

    Args:
        image: image embeddings, float32 or bfloat16.
        text: text embeddings of the same dtype.
        scale: factor of the cosines.
        bias: added to every logit.
        loss: "softmax" or "sigmoid".
        mesh: mesh of the devices, or None.
        batch_axes: axes of `mesh` that split the batch.
    """
    logits = gathered_logits(image, text, scale, bias, mesh=mesh, batch_axes=batch_axes)

    # A mask, not jnp.diagonal: XLA collects a sharded matrix to gather along it.
    mask = TileMask(positive=jnp.eye(logits.shape[0], dtype=bool))
    tile_loss = TILE_LOSSES[loss]
    pairs, _ = tile_loss.finalize(*tile_loss.statistics(logits, mask))
    # Behind a barrier for the reason given in sum_rows_first.
    terms = jax.lax.optimization_barrier(pairs.terms)
    value = sum(term.mean() for term in terms) / tile_loss.num_terms
    return value, {name: x.mean(dtype=jnp.float32) for name, x in pairs.metrics.items()}


def gathered_logits(
    image: Float[Array, "rows width"],
    text: Float[Array, "columns width"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    mesh: Mesh | None,
    batch_axes: tuple[str, ...],
) -> Float[Array, "rows columns"]:
    """Logits of all images and texts of a batch, float32, rows split over the batch axes.

    Args:
        image: image embeddings, float32 or bfloat16.
        text: text embeddings of the same dtype, which every device collects.
        scale: factor of the cosines.
        bias: added to every logit.
        mesh: mesh of the devices, or None.
        batch_axes: axes of `mesh` that split the batch.
    """

    def constrain(x: jax.Array, *spec: tuple[str, ...] | None) -> jax.Array:
        if mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    # Propagation alone might gather the images, or the logits.
    image = constrain(image, batch_axes, None)
    text = constrain(text, None, None)
    # A column behind a barrier, so that its gradient is summed by rows first: see sum_rows_first.
    biases = jax.lax.optimization_barrier(jnp.broadcast_to(bias, (image.shape[0], 1)))
    return constrain(pair_logits(image, text, scale, biases), batch_axes, None)
