"""Selection of patches: patch dropout (FLIP) and masking (MAE)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def select_patches(
    tokens: Float[Array, "batch length width"],
    selected: Int[Array, "batch kept"],
    num_prefix: int,
) -> Float[Array, "batch new_length width"]:
    """Keeps the prefix tokens and the selected patches.

    Args:
        tokens: (B, num_prefix + N, D).
        selected: indices of patches (B, K), each in [0, N).
        num_prefix: number of tokens before the first patch.

    Returns:
        (B, num_prefix + K, D).
    """
    patches = jnp.take_along_axis(tokens[:, num_prefix:], selected[..., None], axis=1)
    return jnp.concatenate([tokens[:, :num_prefix], patches], axis=1)


def drop_patches(
    tokens: Float[Array, "batch length width"],
    fraction: float,
    rng: Key[Array, ""] | None,
    num_prefix: int,
) -> Float[Array, "batch new_length width"]:
    """Drops a random subset of the patches of each example (FLIP, Li et al. 2023, section 3).

    Args:
        tokens: (B, num_prefix + N, D).
        fraction: fraction of patches that are dropped; at least one patch is kept.
        rng: PRNG key, or None for evaluation, which returns `tokens`.
        num_prefix: number of tokens before the first patch, which are kept.

    Returns:
        (B, num_prefix + K, D).
    """
    if rng is None or not fraction:
        return tokens
    count = tokens.shape[1] - num_prefix
    keep = max(1, round(count * (1 - fraction)))
    noise = jax.random.uniform(rng, (len(tokens), count))
    return select_patches(tokens, jnp.argsort(noise, axis=1)[:, :keep], num_prefix)
