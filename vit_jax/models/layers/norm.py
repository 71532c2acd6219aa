"""Normalisation layers."""

from typing import Any

from flax import nnx

from vit_jax.models.layers.parameters import metadata


def layer_norm(
    width: int, *, epsilon: float, axis: str = "embed", dtype: Any, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """LayerNorm with float32 statistics whatever the compute type."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=dtype,
        # E[x^2] - E[x]^2 cancels catastrophically for large means; two passes cost nothing fused.
        use_fast_variance=False,
        scale_metadata=metadata(axis, decay=False),
        bias_metadata=metadata(axis, decay=False),
        rngs=rngs,
    )
