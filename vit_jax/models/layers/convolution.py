"""Convolutions as torch pads them."""

from typing import Any

from flax import nnx

from vit_jax.models.layers.parameters import Initializer, metadata


def convolution(
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int = 1,
    *,
    use_bias: bool = False,
    kernel_init: Initializer,
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Builds a convolution, padded equally on both sides as in torch; SAME is not.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        size: side of the kernel.
        stride: stride of both axes.
        use_bias: whether there is a bias.
        kernel_init: initializer of the kernel.
        dtype: compute type.
        rngs: source of the parameters' keys.
    """
    return nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=use_bias,
        kernel_init=kernel_init,
        kernel_metadata=metadata("kernel_h", "kernel_w", "channels", "embed"),
        bias_metadata=metadata("embed", decay=False),
        dtype=dtype,
        rngs=rngs,
    )
