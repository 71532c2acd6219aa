"""Masked autoencoder (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.layers.transformer import BlockConfig, Transformer
from vit_jax.models.sizes import Size, grid_of
from vit_jax.models.vit.backbone import ViTBackbone
from vit_jax.models.vit.model import ViT, ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """Architecture of an encoder with a small decoder.

    Attributes:
        image: architecture of the encoder, a ViT without a head.
        decoder_width: number of features of the decoder.
        decoder_depth: number of blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
        decoder_mlp_dim: hidden units of the decoder's MLP.
    """

    image: ViTConfig
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    decoder_mlp_dim: int = 2048

    def make(self, **execution: Any) -> "MAE":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `MAE`.
        """
        return MAE(self, **execution)

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.image.num_classes:
            raise UserError("a masked autoencoder has no head: set image.num_classes=0")
        self.decoder  # noqa: B018 - checks its own fields

    @property
    def decoder(self) -> BlockConfig:
        """Configuration of the decoder's blocks."""
        return BlockConfig(
            width=self.decoder_width,
            num_heads=self.decoder_num_heads,
            mlp_dim=self.decoder_mlp_dim,
            activation=self.image.activation,
            norm_epsilon=self.image.norm_epsilon,
            weight_init=self.image.weight_init,
        )


class MAE(ViTBackbone):
    """Reconstructs images from a subset of their patches."""

    def __init__(
        self,
        config: MAEConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ) -> None:
        """Builds the model.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            scan: whether to scan the blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, self.dtype = config, dtype
        width = config.decoder_width
        execution: dict[str, Any] = {"dtype": dtype, "scan": scan, "remat": remat, "rngs": rngs}
        self.image = ViT(config.image, **execution)
        self.decoder_embed = _linear(config.image.width, width, ("embed", "mlp"), dtype, rngs)
        self.mask_token = nnx.Param(
            initializers.normal(0.02)(rngs.params(), (1, width)),
            **metadata("prefix", "embed", decay=False),
        )
        self.decoder = Transformer(config.decoder, config.decoder_depth, **execution)
        self.decoder_norm = layer_norm(
            width, epsilon=config.image.norm_epsilon, dtype=dtype, rngs=rngs
        )
        pixels = 3 * config.image.patch_size**2
        self.decoder_head = _linear(width, pixels, ("embed", "pixels"), dtype, rngs)

    def reconstruct(
        self,
        images: Float[Array, "batch height width 3"],
        noise: Float[Array, "batch _patches"],
        mask_ratio: float,
    ) -> tuple[Float[Array, "batch patches values"], Float[Array, "batch patches"]]:
        """Predicts the pixels of all patches from the visible ones.

        Args:
            images: (B, H, W, 3), normalised.
            noise: one number per patch (B, N); the patches of the smallest numbers are visible
                (section 3, "Simple implementation").
            mask_ratio: fraction of patches that are masked.

        Returns:
            Predicted pixels (B, N, patch_size^2 * 3), float32, in the layout of `patchify`, and the
            mask (B, N), float32, 1 for masked patches.

        Raises:
            UserError: noise of another shape, or a mask ratio outside of [0, 1).
        """
        grid = grid_of((images.shape[1], images.shape[2]), self.config.image.patch_size)
        batch, count = len(images), grid[0] * grid[1]
        if noise.shape != (batch, count):
            raise UserError(f"noise {noise.shape}: expected one number per patch, {(batch, count)}")
        if not 0 <= mask_ratio < 1:
            raise UserError(f"mask_ratio={mask_ratio}: expected a fraction in [0, 1)")
        order = jnp.argsort(noise, axis=1)
        visible = order[:, : num_shown(count, mask_ratio)]
        rank = jnp.argsort(order, axis=1)
        tokens = self.decoder_embed(self.image.encode_patches(images, visible))
        pixels = self._decode(tokens, rank, grid)
        return pixels, (rank >= visible.shape[1]).astype(jnp.float32)

    def _decode(self, tokens: jax.Array, rank: jax.Array, grid: Size) -> jax.Array:
        """Predicts the pixels of all patches.

        Args:
            tokens: prefix and visible patches (B, num_prefix + K, decoder_width).
            rank: index of each patch (B, N) among the visible and then the masked ones.
            grid: rows and columns of patches.
        """
        split = self.config.image.num_prefix
        prefix, visible = tokens[:, :split], tokens[:, split:]
        batch, count, width = *rank.shape, visible.shape[-1]
        masked = jnp.broadcast_to(
            self.mask_token[...].astype(self.dtype), (batch, count - visible.shape[1], width)
        )
        patches = jnp.concatenate([visible, masked], axis=1)
        patches = jnp.take_along_axis(patches, rank[..., None], axis=1)
        # The class token's position is zero.
        positions = self.config.image.fixed_positions(grid, width)
        patches = patches + positions.astype(self.dtype)
        x, _ = self.decoder(jnp.concatenate([prefix, patches], axis=1))
        return self.decoder_head(self.decoder_norm(x[:, split:])).astype(jnp.float32)


def num_shown(num_patches: int, mask_ratio: float) -> int:
    """Counts the patches of an image that the encoder sees.

    Args:
        num_patches: number of patches.
        mask_ratio: fraction of patches that are masked.
    """
    return int(num_patches * (1 - mask_ratio))


def patchify(
    images: Float[Array, "batch height width channels"], patch_size: int
) -> Float[Array, "batch patches values"]:
    """Cuts images into patches.

    Args:
        images: (B, H, W, C).
        patch_size: side of a patch, px.

    Returns:
        (B, N, patch_size^2 * C); the values of a patch are ordered by row, column, channel.
    """
    batch, height, width, channels = images.shape
    grid = (height // patch_size, width // patch_size)
    x = images.reshape(batch, grid[0], patch_size, grid[1], patch_size, channels)
    return jnp.swapaxes(x, 2, 3).reshape(batch, grid[0] * grid[1], -1)


def _linear(
    width: int, outputs: int, axes: tuple[str, str], dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    return nnx.Linear(
        width,
        outputs,
        kernel_init=initializers.xavier_uniform(),
        kernel_metadata=metadata(*axes),
        bias_metadata=metadata(axes[1], decay=False),
        dtype=dtype,
        rngs=rngs,
    )
