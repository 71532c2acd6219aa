"""Patch embedding: a convolution whose stride is the side of a patch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.models.layers.grids import MATRICES
from vit_jax.models.layers.parameters import Initializer, metadata, weights
from vit_jax.models.ops.linear import linear
from vit_jax.models.sizes import grid_of

# Flax's default for convolutions.
KERNEL_INIT = initializers.lecun_normal()


@functools.cache
def _pi_matrix(old: int, new: int) -> np.ndarray:
    """Pseudo-inverse (new, old) of the transposed bilinear resize from `old` to `new` pixels."""
    return np.linalg.pinv(MATRICES["bilinear"](old, new).T).astype(np.float32)


def resize_kernel(
    kernel: Float[Array, "old_rows old_columns channels width"], side: int
) -> Float[Array, "{side} {side} channels width"]:
    """PI-resize of a patch embedding (Beyer et al. 2023, FlexiViT, section 3.4), in float32.

    Where B resizes a patch bilinearly, the new kernel is the pseudo-inverse of B^T, times the old
    one. Tokens of an enlarged image under the new kernel are exactly those of the image under the
    old one. For a smaller patch the new kernel, enlarged again by B^T, is as near as possible to
    the old one.

    Args:
        kernel: kernel of patches of another size.
        side: side of the new patches, px.
    """
    if kernel.shape[:2] == (side, side):
        return kernel
    down, across = (_pi_matrix(old, side) for old in kernel.shape[:2])
    resized = jnp.einsum(
        "ai,bj,ijcd->abcd", down, across, kernel.astype(jnp.float32), precision="highest"
    )
    return resized.astype(kernel.dtype)


class PatchEmbedding(nnx.Conv):
    """Linear embedding of square patches (Dosovitskiy et al. 2021, section 3.1).

    The learned kernel may have another size than the patches; it is then resized in each call.
    """

    def __init__(
        self,
        patch_size: int,
        width: int,
        *,
        kernel_side: int | None = None,
        use_bias: bool = True,
        drop_remainder: bool = False,
        kernel_init: Initializer = KERNEL_INIT,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            patch_size: side of a patch, px.
            width: number of features D.
            kernel_side: side of the learned kernel, px, see `resize_kernel`; None: `patch_size`.
            use_bias: whether there is a bias.
            drop_remainder: see `grid_of`.
            kernel_init: initializer of the kernel (kernel_side, kernel_side, 3, D).
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        side = kernel_side or patch_size
        super().__init__(
            3,
            width,
            (side, side),
            strides=patch_size,
            padding="VALID",
            use_bias=use_bias,
            kernel_init=kernel_init,
            kernel_metadata=metadata("patch_h", "patch_w", "channels", "embed"),
            bias_metadata=metadata("embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        self.patch_size, self.drop_remainder = patch_size, drop_remainder

    def __call__(  # type: ignore[override]  # nnx.Conv takes a sharding, too
        self, images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch rows columns dim"]:
        """Embeds the patches of images.

        Args:
            images: (B, H, W, 3), normalised.

        Returns:
            (B, H / patch_size, W / patch_size, D), compute type.

        Raises:
            UserError: see `grid_of`.
        """
        side, (batch, height, width, channels) = self.patch_size, images.shape
        rows, columns = grid_of((height, width), side, drop_remainder=self.drop_remainder)
        kernel, bias = self._weights()
        # A product instead of a convolution, for which XLA:TPU generates code for minutes where the
        # side is 14. Channels never are the last dimension, which a TPU would pad to 128.
        cells = images[:, : rows * side, : columns * side].astype(self.dtype)
        cells = cells.reshape(batch, rows, side, columns, side * channels)
        embedded = jnp.einsum("brpcq,pqd->brcd", cells, kernel.reshape(side, side * channels, -1))
        return embedded + bias

    def embed_patches(
        self, patches: Float[Array, "batch patches features"]
    ) -> Float[Array, "batch patches dim"]:
        """Embeds pixels that are patches already, see `PatchSequence`.

        Args:
            patches: (B, N, patch_size * patch_size * 3), normalised.

        Returns:
            (B, N, D), compute type.
        """
        kernel, bias = self._weights()
        batch, count, features = patches.shape
        # XLA:CPU contracts (B, N, D) slowly, see `ops.mlp`.
        flat = patches.reshape(batch * count, features).astype(self.dtype)
        embedded = linear(flat, (kernel.reshape(features, -1), bias))
        return embedded.reshape(batch, count, -1)

    def _weights(self) -> tuple[jax.Array, jax.Array]:
        """Kernel of the patches and bias, compute type."""
        kernel, bias = weights(self, self.dtype)
        if kernel.shape[0] != self.patch_size:
            kernel = resize_kernel(self.kernel[...], self.patch_size).astype(self.dtype)
        return kernel, bias
