"""Feature pyramid (Lin et al. 2017, "Feature Pyramid Networks") with the extra levels of RetinaNet.

The levels of a Swin whose stages have strides 8, 16 and 32 px are P3 to P7.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import Initializer, metadata
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
        self.stages, execution = len(stage_widths), {"dtype": dtype, "rngs": rngs}
        for i, inputs in enumerate(stage_widths):
            setattr(self, f"norm{i}", layer_norm(inputs, epsilon=norm_epsilon, **execution))
            setattr(self, f"inner{i}", convolution(inputs, width, 1, init=_KAIMING, **execution))
            setattr(self, f"output{i}", convolution(width, width, 3, init=_KAIMING, **execution))
        for i in range(EXTRA_LEVELS):
            extra = convolution(width, width, 3, 2, init=_KAIMING, **execution)
            setattr(self, f"extra{i}", extra)

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


def convolution(
    inputs: int,
    width: int,
    side: int,
    stride: int = 1,
    *,
    init: Initializer,
    bias: float = 0.0,
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Builds a convolution with a bias, padded equally on both sides as in torch; SAME is not.

    Args:
        inputs: number of input features.
        width: number of output features.
        side: side of the kernel.
        stride: stride of both axes.
        init: initializer of the kernel.
        bias: initial value of the bias.
        dtype: compute type.
        rngs: source of the parameters' keys.
    """
    return nnx.Conv(
        inputs,
        width,
        (side, side),
        strides=stride,
        padding=side // 2,
        kernel_init=init,
        bias_init=initializers.constant(bias),
        kernel_metadata=metadata("kernel_h", "kernel_w", "channels", "embed"),
        bias_metadata=metadata("embed", decay=False),
        dtype=dtype,
        rngs=rngs,
    )


def _nearest(x: jax.Array, size: Size) -> jax.Array:
    """Enlarges maps (B, h, w, D) to a size, as torch's `interpolate` in the mode "nearest"."""
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        at = np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new))
        x = jnp.take(x, np.minimum(at, old - 1).astype(np.int32), axis=axis)
    return x
