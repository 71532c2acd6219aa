"""Patch embedding: a convolution whose stride is its kernel size."""

from typing import Any

import jax
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.models.layers.parameters import Initializer, metadata, weights
from vit_jax.models.ops.linear import linear
from vit_jax.models.sizes import grid_of

# Flax's default for convolutions.
KERNEL_INIT = initializers.lecun_normal()


class PatchEmbedding(nnx.Conv):
    """Linear embedding of square patches (Dosovitskiy et al. 2021, section 3.1)."""

    def __init__(
        self,
        patch_size: int,
        width: int,
        *,
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
            use_bias: whether there is a bias.
            drop_remainder: see `grid_of`.
            kernel_init: initializer of the kernel (patch_size, patch_size, 3, D).
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        super().__init__(
            3,
            width,
            (patch_size, patch_size),
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

    def __call__(
        self, images: Float[Array, "batch height width 3"], out_sharding: Any = None
    ) -> Float[Array, "batch rows columns dim"]:
        """Embeds the patches of images.

        Args:
            images: (B, H, W, 3), normalised.
            out_sharding: as in `nnx.Conv`.

        Returns:
            (B, H / patch_size, W / patch_size, D), compute type.

        Raises:
            UserError: see `grid_of`.
        """
        size = images.shape[1], images.shape[2]
        grid_of(size, self.patch_size, drop_remainder=self.drop_remainder)
        embedded: jax.Array = super().__call__(images.astype(self.dtype), out_sharding)
        return embedded

    def embed_patches(
        self, patches: Float[Array, "batch patches features"]
    ) -> Float[Array, "batch patches dim"]:
        """Embeds pixels that are patches already, see `PatchSequence`.

        Args:
            patches: (B, N, patch_size * patch_size * 3), normalised.

        Returns:
            (B, N, D), compute type.
        """
        kernel, bias = weights(self, self.dtype)
        batch, count, features = patches.shape
        # XLA:CPU contracts (B, N, D) slowly, see `ops.mlp`.
        flat = patches.reshape(batch * count, features).astype(self.dtype)
        embedded = linear(flat, (kernel.reshape(features, -1), bias))
        return embedded.reshape(batch, count, -1)
