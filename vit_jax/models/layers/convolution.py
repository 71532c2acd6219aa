"""Convolutions as torch pads them."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.models.layers.parameters import TORCH_INIT, Initializer, metadata


def convolution(
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int = 1,
    *,
    padding: int | None = None,
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
        padding: rows and columns of zeros on each side; None for half of the size.
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
        padding=size // 2 if padding is None else padding,
        use_bias=use_bias,
        kernel_init=kernel_init,
        kernel_metadata=metadata("kernel_h", "kernel_w", "channels", "embed"),
        bias_metadata=metadata("embed", decay=False),
        dtype=dtype,
        rngs=rngs,
    )


class Enlarging(nnx.Module):
    """Transposed convolution whose kernel is as large as its stride: a linear map per position."""

    def __init__(
        self, in_channels: int, out_channels: int, scale: int, *, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Builds the layer.

        Args:
            in_channels: number of input channels.
            out_channels: number of output channels.
            scale: side of the square of outputs of each input.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.dtype = dtype
        shape = (scale, scale, in_channels, out_channels)
        self.kernel = nnx.Param(
            TORCH_INIT(rngs.params(), shape, jnp.float32),
            **metadata("kernel_h", "kernel_w", "channels", "embed"),
        )
        self.bias = nnx.Param(
            jnp.zeros((out_channels,), jnp.float32), **metadata("embed", decay=False)
        )

    def __call__(
        self, x: Float[Array, "batch rows columns channels"]
    ) -> Float[Array, "batch new_rows new_columns new_channels"]:
        """Enlarges a map (B, h, w, C) to (B, h * scale, w * scale, out_channels)."""
        kernel, bias = (p[...].astype(self.dtype) for p in (self.kernel, self.bias))
        scale, _, _, channels = kernel.shape
        batch, rows, columns, _ = x.shape
        x = jnp.einsum("bijc,klcd->bikjld", x.astype(self.dtype), kernel)
        return x.reshape(batch, rows * scale, columns * scale, channels) + bias
