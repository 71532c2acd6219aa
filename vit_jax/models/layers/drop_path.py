"""Stochastic depth."""

import jax
import jax.numpy as jnp


def drop_path(x: jax.Array, rate: jax.Array | float, rng: jax.Array | None) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): zeroes a residual branch for whole examples.

    Args:
        x: branch output (B, ...).
        rate: probability of dropping, a scalar; kept examples are scaled by 1 / (1 - rate).
        rng: key, or None for evaluation, which returns `x`.
    """
    if rng is None:
        return x
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    mask = jax.random.bernoulli(rng, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
    return x * (mask / keep).astype(x.dtype)
