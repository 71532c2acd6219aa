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


def keep_patches(
    batch: int, count: int, fraction: float, rng: Key[Array, ""]
) -> Int[Array, "batch kept"]:
    """Chooses the patches of each example that are not dropped (FLIP, Li et al. 2023, section 3).

    Args:
        batch: number of examples B.
        count: number of patches N.
        fraction: fraction of patches that are dropped; at least one patch is kept.
        rng: PRNG key.

    Returns:
        Indices of patches (B, K).
    """
    keep = max(1, round(count * (1 - fraction)))
    return jnp.argsort(jax.random.uniform(rng, (batch, count)), axis=1)[:, :keep]
