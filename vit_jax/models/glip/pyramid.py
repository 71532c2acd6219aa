"""Feature pyramid (Lin et al. 2017, "Feature Pyramid Networks") with the extra levels of RetinaNet.

The levels of a Swin whose stages have strides 8, 16 and 32 px are P3 to P7.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.models.layers.convolution import convolution
from vit_jax.models.layers.maps import nearest
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.sizes import Size

EXTRA_LEVELS = 2
# Kaiming's uniform distribution for linear units, `kaiming_uniform_(a=1)` of torch.
_KAIMING = initializers.variance_scaling(1.0, "fan_in", "uniform")


class FeaturePyramid(nnx.Module):
    """Stages of a backbone to levels, from fine to coarse.

    Each stage has a LayerNorm, as in the backbone of the original code. Two levels more are made
    from the last one by convolutions with stride 2.
    """

    def __init__(
        self,
        stage_widths: Sequence[int],
        width: int,
        *,
        norm_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layers.

        Args:
            stage_widths: number of features of each stage.
            width: number of features of the levels D.
            norm_epsilon: epsilon of LayerNorm.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.stages = len(stage_widths)
        conv = functools.partial(
            convolution, use_bias=True, kernel_init=_KAIMING, dtype=dtype, rngs=rngs
        )
        for i, inputs in enumerate(stage_widths):
            norm = layer_norm(inputs, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
            setattr(self, f"norm{i}", norm)
            setattr(self, f"inner{i}", conv(inputs, width, 1))
            setattr(self, f"output{i}", conv(width, width, 3))
        for i in range(EXTRA_LEVELS):
            setattr(self, f"extra{i}", conv(width, width, 3, 2))

    def __call__(
        self, stages: Sequence[Float[Array, "batch _rows _columns _channels"]]
    ) -> list[Float[Array, "batch _rows _columns width"]]:
        """Computes the levels (B, h, w, D) from stages (B, h, w, C)."""
        inner = [
            getattr(self, f"inner{i}")(getattr(self, f"norm{i}")(x)) for i, x in enumerate(stages)
        ]
        for i in range(self.stages - 2, -1, -1):
            inner[i] = inner[i] + _nearest(inner[i + 1], inner[i].shape[1:3])
        levels = [getattr(self, f"output{i}")(x) for i, x in enumerate(inner)]
        for i in range(EXTRA_LEVELS):
            x = levels[-1] if i == 0 else jax.nn.relu(levels[-1])
            levels.append(getattr(self, f"extra{i}")(x))
        return levels


def _nearest(x: jax.Array, size: Size) -> jax.Array:
    """Enlarges maps (B, h, w, D) to a size, as torch's `interpolate` in the mode "nearest"."""
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        x = jnp.take(x, nearest(old, new), axis=axis)
    return x
