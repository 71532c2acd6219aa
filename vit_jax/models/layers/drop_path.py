"""Stochastic depth (Huang et al. 2016, "Deep Networks with Stochastic Depth")."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped


def drop_path(
    x: Float[Array, "batch ..."],
    rate: Float[Array, ""] | float,
    rng: Key[Array, ""] | None,
) -> Float[Array, "batch ..."]:
    """Zeroes a residual branch for randomly chosen examples.

    Args:
        x: output of the branch (B, ...).
        rate: probability of dropping; kept examples are scaled by 1 / (1 - rate).
        rng: PRNG key; None for evaluation, which returns `x`.

    Returns:
        (B, ...), dtype of `x`.
    """
    if rng is None:
        return x
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    mask = jax.random.bernoulli(rng, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
    return x * (mask / keep).astype(x.dtype)


def drop_path_schedule(
    max_rate: float, depth: int, rng: Key[Array, ""] | None
) -> tuple[Float[Array, " depth"], Shaped[Array, " depth"] | None]:
    """Builds the rates and keys of a stack of blocks: linear from 0 (Huang et al. 2016, section 3).

    Args:
        max_rate: rate of the last block.
        depth: number of blocks.
        rng: PRNG key, or None for evaluation.

    Returns:
        Rates, float32 (depth,), and keys (depth,), or None where nothing is dropped.
    """
    rates = jnp.linspace(0.0, max_rate, depth)
    if rng is None or max_rate == 0:
        return rates, None
    return rates, jax.random.split(rng, depth)
