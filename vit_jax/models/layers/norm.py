"""Layer normalisation (Ba et al. 2016), RMSNorm, and group normalisation."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from vit_jax.models.layers.parameters import metadata
from vit_jax.models.ops.layer_norm import normalize_branch
from vit_jax.models.partitioning import interpret_kernels, platform

Tokens = Float[Array, "*batch width"]
Norm = nnx.LayerNorm | nnx.RMSNorm


def split_branch(norm: Norm, x: Tokens) -> tuple[Tokens, Tokens]:
    """Starts a residual branch.

    Args:
        norm: normalisation layer.
        x: residual stream (..., D).

    Returns:
        norm(x) for the branch, and x for the sum after it. On TPUs their gradients are then added
        in the same pass.
    """
    scale, bias = norm.scale, getattr(norm, "bias", None)
    if platform() != "tpu" or x.ndim != 3 or norm.dtype != x.dtype or not scale or not bias:
        return norm(x), x
    return normalize_branch(x, scale[...], bias[...], norm.epsilon, interpret=interpret_kernels())


def group_norm(width: int, groups: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Builds a GroupNorm (Wu & He 2018) with torch's epsilon and float32 statistics.

    Args:
        width: number of features D.
        groups: number of groups, which divides D.
        dtype: compute type.
        rngs: source of the parameters' keys.
    """
    return nnx.GroupNorm(
        width,
        groups,
        epsilon=1e-5,
        use_fast_variance=False,
        scale_metadata=metadata("embed", decay=False),
        bias_metadata=metadata("embed", decay=False),
        dtype=dtype,
        rngs=rngs,
    )


def layer_norm(
    width: int,
    *,
    epsilon: float,
    use_bias: bool = True,
    axis: str = "embed",
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.LayerNorm:
    """Builds a LayerNorm whose statistics are float32 in every compute type.

    Args:
        width: number of features D.
        epsilon: constant added to the variance.
        use_bias: whether there is a bias.
        axis: logical name of the feature dimension.
        dtype: compute type.
        rngs: source of the parameters' keys.
    """
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        use_bias=use_bias,
        dtype=dtype,
        # E[x^2] - E[x]^2 cancels catastrophically for large means. Two passes cost nothing once
        # they are fused.
        use_fast_variance=False,
        scale_metadata=metadata(axis, decay=False),
        bias_metadata=metadata(axis, decay=False),
        rngs=rngs,
    )


def rms_norm(
    width: int, *, epsilon: float, axis: str = "embed", dtype: Any, rngs: nnx.Rngs
) -> nnx.RMSNorm:
    """Builds an RMSNorm (Zhang & Sennrich 2019), without a mean and without a bias.

    Args:
        width: number of features D.
        epsilon: constant added to the mean square, which is float32 in every compute type.
        axis: logical name of the feature dimension.
        dtype: compute type.
        rngs: source of the parameters' keys.
    """
    return nnx.RMSNorm(
        width,
        epsilon=epsilon,
        dtype=dtype,
        scale_metadata=metadata(axis, decay=False),
        rngs=rngs,
    )


NORMS: dict[str, Callable[..., Norm]] = {"layer": layer_norm, "rms": rms_norm}
