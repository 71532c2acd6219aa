"""The contrastive loss of images with several captions each, all of which are positives.

Image i and caption k of image j have the logit `z_ijk = t x_i . y_jk + b`, with N images and K
captions per image.

- `softmax`: the mean of two cross-entropies. Each image has K positives among N K captions, over
  which it is averaged; each caption has one positive among N images (Yang et al. 2022, UniCL,
  https://arxiv.org/abs/2204.03610, sec. 3.2; for images alone Khosla et al. 2020, SupCon,
  https://arxiv.org/abs/2004.11362, eq. 2). The first is at least log K.
- `sigmoid`: `-sum_ijk log sigmoid(+-z_ijk) / (N K)`, plus for j = i.

With K equal captions, both are the loss of one, plus log(K) / 2 for "softmax".
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vit_jax.objectives.contrastive.gathered import gathered_logits
from vit_jax.objectives.contrastive.loss import contrastive_loss


def several_captions_loss(
    image_embeddings: Float[Array, "batch width"],
    text_embeddings: Float[Array, "batch k width"],
    *,
    logit_scale: Float[Array, ""],
    loss: str,
    form: str,
    mesh: Mesh | None,
    batch_axes: Sequence[str],
    **options: Any,
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
    """Contrastive loss of a batch of images with K captions each, see the module.

    Args:
        image_embeddings: rows of unit length.
        text_embeddings: unit vectors of the captions of each image.
        logit_scale: factor of the cosines.
        loss: "softmax" or "sigmoid".
        form: see `contrastive_loss`; "gathered" for "softmax".
        mesh: mesh that the batch is sharded over, or None.
        batch_axes: axes of `mesh` that split the batch.
        **options: further arguments of `contrastive_loss`.

    Returns:
        The loss, and metrics without gradients: for "softmax" the accuracy
        `image_to_text_accuracy`, of images whose best caption is one of their own, and
        `text_to_image_accuracy`, of captions. A tie with a negative counts as a miss.
    """
    axes: dict[str, Any] = {"mesh": mesh, "batch_axes": tuple(batch_axes)}
    if loss == "sigmoid":
        # The sum over all pairs is that over the pairs of the first captions, the second, ...
        losses = [
            contrastive_loss(
                image_embeddings, texts, logit_scale=logit_scale, loss=loss, form=form,
                **axes, **options,
            )[0]
            for texts in jnp.moveaxis(text_embeddings, 1, 0)
        ]  # fmt: skip
        return jnp.mean(jnp.stack(losses)), {}
    batch, count, width = text_embeddings.shape
    texts = text_embeddings.reshape(-1, width)
    logits = gathered_logits(image_embeddings, texts, logit_scale, jnp.zeros(()), **axes)
    by_image = jax.nn.log_softmax(logits, axis=1).reshape(batch, batch, count)
    by_text = jax.nn.log_softmax(logits, axis=0).reshape(batch, batch, count)
    own = jnp.eye(batch, dtype=bool)[:, :, None]
    value = -(jnp.sum(by_image + by_text, where=own)) / (2 * batch * count)

    every = jax.lax.stop_gradient(logits).reshape(batch, batch, count)
    rivals, positives = jnp.where(own, -jnp.inf, every), jnp.where(own, every, -jnp.inf)
    best = jnp.max(positives, axis=(1, 2)) > jnp.max(rivals, axis=(1, 2))
    found = jnp.max(positives, axis=0) > jnp.max(rivals, axis=0)
    return value, {
        "image_to_text_accuracy": jnp.mean(best, dtype=jnp.float32),
        "text_to_image_accuracy": jnp.mean(found, dtype=jnp.float32),
    }
