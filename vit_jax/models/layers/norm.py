"""Layer normalisation (Ba et al. 2016)."""

from typing import Any

from flax import nnx

from vit_jax.models.layers.parameters import metadata


def layer_norm(
    width: int, *, epsilon: float, axis: str = "embed", dtype: Any, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """Builds a LayerNorm whose statistics are float32 in every compute type.

    Args:
        width: number of features D.
        epsilon: constant added to the variance.
        axis: logical name of the feature dimension.
        dtype: compute type.
        rngs: source of the parameters' keys.
    """
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=dtype,
        # E[x^2] - E[x]^2 cancels catastrophically for large means. Two passes cost nothing once
        # they are fused.
        use_fast_variance=False,
        scale_metadata=metadata(axis, decay=False),
        bias_metadata=metadata(axis, decay=False),
        rngs=rngs,
    )
