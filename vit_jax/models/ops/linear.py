"""Linear maps of token arrays."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Kernel (inputs..., outputs...) and bias (outputs...), both in the compute type.
Weights = tuple[Float[Array, "..."], Float[Array, "..."]]


def linear(x: Float[Array, "..."], weights: Weights, axes: int = 1) -> Float[Array, "..."]:
    """Contracts the last axes of `x` with the first axes of a kernel and adds a bias.

    Args:
        x: (..., inputs...).
        weights: kernel (inputs..., outputs...) and bias (outputs...).
        axes: number of input axes.

    Returns:
        (..., outputs...).
    """
    kernel, bias = weights
    contracted = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))
    y = jax.lax.dot_general(x, kernel, (contracted, ((), ())))
    return y + jnp.reshape(bias, (1,) * (y.ndim - bias.ndim) + bias.shape)
