"""Selection of patches: patch dropout (FLIP) and masking (MAE)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, Shaped


def select_patches(
    tokens: Shaped[Array, "batch length width"],
    selected: Int[Array, "batch kept"],
    num_prefix: int,
) -> Shaped[Array, "batch new_length width"]:
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
    batch: int,
    count: int,
    fraction: float,
    rng: Key[Array, ""],
    mask: Bool[Array, "batch patches"] | None = None,
) -> Int[Array, "batch kept"]:
    """Chooses the patches of each example that are not dropped (FLIP, Li et al. 2023, section 3).

    Args:
        batch: number of examples B.
        count: number of patches N.
        fraction: fraction of patches that are dropped; at least one patch is kept.
        rng: PRNG key.
        mask: False for padding, which is dropped before any patch; None for none.

    Returns:
        Indices of patches (B, K).
    """
    keep = max(1, round(count * (1 - fraction)))
    order = jax.random.uniform(rng, (batch, count))
    if mask is not None:
        order = order + ~mask
    return jnp.argsort(order, axis=1)[:, :keep]
