"""Gram anchoring (Simeoni et al. 2025, DINOv3, https://arxiv.org/abs/2508.10104, section 4.2)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.layers.grids import resize_grid
from vit_jax.models.sizes import Size
from vit_jax.objectives.contrastive.logits import product


def gram_loss(
    student: Float[Array, "batch patches width"], taught: Float[Array, "batch patches width"]
) -> Float[Array, " batch"]:
    """Mean squared difference between the cosine similarities of the patches of an image.

    Features may rotate, as long as the similarities of patches stay those of the teacher. The mean
    is over all pairs of patches, as in the authors' code; the paper writes their sum.

    Args:
        student: features of the patches.
        taught: the Gram teacher's of the same patches, which have no gradient.

    Returns:
        float32 (B,).
    """
    difference = _cosines(student) - _cosines(jax.lax.stop_gradient(taught))
    return jnp.mean(difference**2, axis=(1, 2))


def resize_patches(
    patches: Float[Array, "batch patches width"], old: Size, new: Size
) -> Float[Array, "batch new_patches width"]:
    """Resizes features on the grid of an image (bicubic without antialias, as the authors).

    Args:
        patches: features in row-major order.
        old: rows and columns of `patches`.
        new: rows and columns of the result.

    Returns:
        float32.
    """
    count, _, width = patches.shape
    grids = patches.astype(jnp.float32).reshape(count, *old, width)
    resized = jax.vmap(functools.partial(resize_grid, new=new, rule="bicubic"))(grids)
    return resized.reshape(count, -1, width)


def _cosines(x: jax.Array) -> jax.Array:
    """Similarities of the patches of each image (B, P, P), float32."""
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
    return product("bid,bjd->bij", x, x)
