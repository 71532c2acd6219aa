"""Where a ViT looks: attention weights, their rollout, and the patches that a score depends on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.inputs.patches import Images
from vit_jax.models.vit.model import ViT


def attention_maps(model: ViT, images: Images) -> Float[Array, "depth batch heads tokens tokens"]:
    """Computes the attention weights of all blocks, float32; the last axis is that of keys.

    Args:
        model: a ViT. That of a dual encoder or masked autoencoder is its `image`.
        images: (B, H, W, 3), normalised; or a `PatchSequence`.
    """
    x, angles, mask = model._tokens(images)
    return model.transformer.attention_maps(x, angles, mask)


def attention_rollout(
    maps: Float[Array, "depth batch heads tokens tokens"],
) -> Float[Array, "batch tokens tokens"]:
    """Follows attention through all blocks (Abnar & Zuidema 2020, section 3).

    The heads are averaged. Half of each token comes from the residual connection.

    Args:
        maps: attention weights, see `attention_maps`.

    Returns:
        Fraction of each input token (last axis) in each output token; the fractions of an output
        token sum to 1.
    """
    mean = jnp.mean(maps, axis=2)
    mixed = (mean + jnp.eye(mean.shape[-1])) / 2
    rollout = mixed[0]
    for each in mixed[1:]:
        rollout = each @ rollout
    return rollout


def patch_relevance(
    model: ViT,
    images: Images,
    score: Callable[[Float[Array, "batch dim"]], Float[Array, " batch"]],
) -> Float[Array, "batch patches"]:
    """Computes how much each patch contributes to a score of the pooled features, float32.

    Grad-CAM (Selvaraju et al. 2017, section 3) at the input of the last block, where the class
    token has not yet read the patches: the positive part of the sum over features of gradient times
    activation.

    Args:
        model: a ViT with pooled features.
        images: (B, H, W, 3), normalised; or a `PatchSequence`.
        score: function of the pooled features (B, D).
    """
    x, angles, mask = model._tokens(images)

    def total(shifts: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens, inputs = model.transformer.apply_shifted(x, shifts, angles, mask)
        return jnp.sum(score(model._pool(tokens, mask))), inputs

    zeros = jnp.zeros((model.config.depth, *x.shape), x.dtype)
    gradients, inputs = jax.grad(total, has_aux=True)(zeros)
    products = gradients[-1].astype(jnp.float32) * inputs[-1].astype(jnp.float32)
    return jax.nn.relu(jnp.sum(products, axis=-1)[:, model.config.num_prefix :])
