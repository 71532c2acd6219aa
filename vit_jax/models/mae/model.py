"""Masked autoencoder (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import LayersAbove, metadata, nested
from vit_jax.models.layers.positions import sincos_positions
from vit_jax.models.layers.transformer import BlockConfig, Transformer
from vit_jax.models.vit.model import ViT, ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """Architecture of an encoder with a small decoder.

    Attributes:
        image: encoder, a tower with a class token, without a head.
        decoder_width: residual stream of the decoder.
        decoder_depth: blocks of the decoder.
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
        if self.image.num_classes:
            raise UserError("a masked autoencoder has no head: set image.num_classes=0")
        self.decoder  # noqa: B018 - refuses what no block can be

    @property
    def decoder(self) -> BlockConfig:
        """The blocks of the decoder."""
        return BlockConfig(
            width=self.decoder_width,
            num_heads=self.decoder_num_heads,
            mlp_dim=self.decoder_mlp_dim,
            activation=self.image.activation,
            norm_epsilon=self.image.norm_epsilon,
            weight_init=self.image.weight_init,
        )


class MAE(nnx.Module):
    """Reconstructs images from the patches it is shown."""

    def __init__(
        self,
        config: MAEConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ):
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

    @property
    def embed_dim(self) -> int:
        """Width D of the pooled features."""
        return self.image.embed_dim

    def encode_image(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Pooled features (B, D) of whole images; the decoder takes no part."""
        return self.image.encode_image(images, rng=rng)

    def features(self, images: jax.Array, layers: Sequence[int]) -> list[jax.Array]:
        """Intermediate outputs of the encoder, see `ViT.features`."""
        return self.image.features(images, layers)

    def layers_above(self) -> LayersAbove:
        """Those of the encoder; the decoder counts as its head."""
        return nested("image", self.image)

    def reconstruct(self, images: jax.Array, noise: jax.Array, mask_ratio: float) -> Any:
        """Predicts every patch from the few that are shown.

        Args:
            images: (B, H, W, 3), normalised.
            noise: (B, N), one number a patch: those with the smallest are shown (section 3,
                "Simple implementation").
            mask_ratio: fraction of patches that are hidden.

        Returns:
            Predicted pixels (B, N, patch_size^2 * 3), float32, in the layout of `patchify`, and
            the mask (B, N), float32, 1 where a patch was hidden.
        """
        grid = self.image.grid_of(images)
        batch, count = len(images), grid[0] * grid[1]
        if noise.shape != (batch, count):
            raise UserError(f"noise {noise.shape}: expected one number a patch, {(batch, count)}")
        if not 0 <= mask_ratio < 1:
            raise UserError(f"mask_ratio={mask_ratio}: expected a share in [0, 1)")
        order = jnp.argsort(noise, axis=1)
        shown = order[:, : num_shown(count, mask_ratio)]
        rank = jnp.argsort(order, axis=1)
        tokens = self.decoder_embed(self.image.encode_patches(images, shown))
        pixels = self._decode(tokens, rank, grid)
        return pixels, (rank >= shown.shape[1]).astype(jnp.float32)

    def _decode(self, tokens: jax.Array, rank: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Pixels of all patches.

        Args:
            tokens: of the decoder's width, the prefix and then the patches shown.
            rank: (B, N), place of each patch among the shown ones, hidden ones come after.
            grid: rows and columns of patches.
        """
        split = self.config.image.num_prefix
        prefix, shown = tokens[:, :split], tokens[:, split:]
        batch, count, width = *rank.shape, shown.shape[-1]
        hidden = jnp.broadcast_to(
            self.mask_token[...].astype(self.dtype), (batch, count - shown.shape[1], width)
        )
        patches = jnp.concatenate([shown, hidden], axis=1)
        patches = jnp.take_along_axis(patches, rank[..., None], axis=1)
        # The class token's position is zero.
        patches = patches + sincos_positions(grid, width).astype(self.dtype)
        x, _ = self.decoder(jnp.concatenate([prefix, patches], axis=1))
        return self.decoder_head(self.decoder_norm(x[:, split:])).astype(jnp.float32)


def num_shown(num_patches: int, mask_ratio: float) -> int:
    """Patches of an image that the encoder sees."""
    return int(num_patches * (1 - mask_ratio))


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Images (B, H, W, 3) as patches (B, N, patch_size^2 * 3): rows, columns, then channels."""
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
