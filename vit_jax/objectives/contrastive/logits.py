"""Logits of image-text pairs, with the rounding that the gradients need."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Einsum of two arrays of one dtype with a float32 result.

    Args:
        equation: einsum equation.
        a: float32 or bfloat16.
        b: array of the same dtype.
    """
    # Products of two bfloat16 are exact in float32, so one pass is enough.
    precision = jax.lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)


def pair_logits(
    image: Float[Array, "rows width"],
    text: Float[Array, "columns width"],
    scale: Float[Array, ""],
    bias: Float[Array, "*bias"],
) -> Float[Array, "rows columns"]:
    """Logits `scale * image @ text.T + bias`, float32.

    Args:
        image: image embeddings, float32 or bfloat16.
        text: text embeddings of the same dtype.
        scale: factor of the cosines.
        bias: scalar, or one value per row (rows, 1).
    """
    if image.dtype == jnp.bfloat16:
        return scale * product("id,jd->ij", image, text) + bias
    # Scaled before the product. Compilers fuse a multiplication after it with the subtraction of
    # the maximum, which rounds differently in the two passes: 2e-6 of the gradient at scale 100.
    return product("id,jd->ij", scale * image, text) + bias


def sum_rows_first(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Sum of an array, the last dimension first."""
    # Without the barrier XLA merges the two sums, which on CPU rounds ten times worse.
    return jax.lax.optimization_barrier(x.sum(-1)).sum()
