"""Tokens of an image: class token, distillation token, registers and patches, with positions."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float

from vit_jax.inputs.patches import Images, PatchSequence
from vit_jax.models.layers.norm import NORMS
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.layers.patch_dropout import keep_patches, select_patches
from vit_jax.models.layers.patch_embedding import PatchEmbedding
from vit_jax.models.layers.positions import (
    positions_of_grids,
    resize_positions,
    sincos_positions,
)
from vit_jax.models.layers.rotary import patch_angles, random_scale
from vit_jax.models.sizes import Size, grid_of

if TYPE_CHECKING:
    from vit_jax.models.vit.model import ViTConfig

# Kinds of positions, see `ViTConfig.position_init`.
POSITION_INITS = ("normal", "sincos", "fixed_sincos", "rotary")
# Mask of patches, and the token that takes their place.
Replaced = tuple[Bool[Array, "batch patches"], Float[Array, "1 dim"]] | None


class Tokens(NamedTuple):
    """Input of the first block.

    Attributes:
        values: tokens (B, num_prefix + N, D), compute type.
        angles: rotation of queries and keys; None without rotary positions.
        mask: False for padding, (B, num_prefix + N); None for no padding.
    """

    values: jax.Array
    angles: jax.Array | None
    mask: jax.Array | None


class PatchTokens(nnx.Module):
    """The part of a ViT before its blocks.

    Attributes:
        config: architecture.
        dtype: compute type.
        patch_embed: embedding of patches.
    """

    config: "ViTConfig"
    dtype: Any
    patch_embed: PatchEmbedding

    def _make_tokens(self, rngs: nnx.Rngs) -> None:
        """Creates the embedding of patches, the learned tokens and the positions."""
        config, width = self.config, self.config.width
        self.patch_embed = PatchEmbedding(
            config.patch_size,
            width,
            kernel_side=config.kernel_size,
            use_bias=config.patch_bias,
            drop_remainder=config.drop_remainder,
            dtype=self.dtype,
            rngs=rngs,
        )
        init = initializers.normal(width**-0.5)

        def tokens(count: int) -> nnx.Param:
            value = init(rngs.params(), (count, width))
            return nnx.Param(value, **metadata("prefix", "embed", decay=False))

        if config.class_token:
            self.class_token = tokens(1)
        if config.distillation:
            self.distillation_token = tokens(1)
        if config.num_registers:
            self.registers = tokens(config.num_registers)
        if config.has_table:
            self._make_positions(init, rngs)
        norm = {"epsilon": config.norm_epsilon, "dtype": self.dtype, "rngs": rngs}
        if config.pre_norm:
            self.pre_norm = NORMS[config.norm](width, **norm)
        if config.patch_norm:
            self.patch_norm = NORMS[config.norm](width, **norm)

    def _make_positions(self, init: initializers.Initializer, rngs: nnx.Rngs) -> None:
        """Creates the table of learned positions."""
        config, width = self.config, self.config.width
        rows, columns = config.table_grid
        prefix = config.num_special if config.prefix_positions else 0
        positions = init(rngs.params(), (prefix + rows * columns, width))
        if config.position_init == "sincos":
            positions = positions.at[prefix:].set(sincos_positions(config.table_grid, width))
        self.positions = nnx.Param(positions, **metadata("length", "embed", decay=False))

    def _tokens(
        self,
        images: Images,
        rng: jax.Array | None = None,
        selected: jax.Array | None = None,
        replaced: Replaced = None,
    ) -> Tokens:
        """Input of the first block.

        Patches are those `selected`, (B, K); or else, with a key, those that dropout keeps.
        """
        config, split, mask = self.config, self.config.num_prefix, None
        if isinstance(images, PatchSequence):
            config.check_naflex()
            mask = jnp.pad(images.mask, ((0, 0), (split, 0)), constant_values=True)
        x, angles = self._embed(images, replaced), self._angles(images, rng)
        if selected is None and rng is not None and config.patch_dropout:
            count = x.shape[1] - split
            patches = None if mask is None else mask[:, split:]
            selected = keep_patches(len(x), count, config.patch_dropout, rng, patches)
        if selected is not None:
            x = select_patches(x, selected, split)
        if selected is not None and angles is not None:
            angles = jnp.broadcast_to(angles, (len(x), *angles.shape[1:]))
            angles = select_patches(angles, selected, split)
        if selected is not None and mask is not None:
            mask = select_patches(mask[..., None], selected, split)[..., 0]
        return Tokens(self.pre_norm(x) if config.pre_norm else x, angles, mask)

    def _embed(self, images: Images, replaced: Replaced = None) -> jax.Array:
        """Embeds all tokens with their positions: (B, num_prefix + N, D)."""
        config, (patches, grid) = self.config, self._patches(images)
        batch = patches.shape[0]  # may be symbolic, as in an exported program
        if replaced is not None:
            mask, token = replaced
            patches = jnp.where(mask[..., None], token.astype(self.dtype), patches)

        def prefix(tokens: list[nnx.Param]) -> list[jax.Array]:
            values = [token[...].astype(self.dtype) for token in tokens]
            return [jnp.broadcast_to(v, (batch, *v.shape)) for v in values]

        special = [self.class_token] if config.class_token else []
        special += [self.distillation_token] if config.distillation else []
        registers = prefix([self.registers] if config.num_registers else [])
        if config.position_init == "rotary":
            return jnp.concatenate([*prefix(special), *registers, patches], axis=1)
        if not config.prefix_positions or not config.has_table:
            patches = patches + self._positions(grid, 0, patches.shape[1])
            return jnp.concatenate([*prefix(special), *registers, patches], axis=1)
        x = jnp.concatenate([*prefix(special), patches], axis=1)
        x = x + self._positions(grid, config.num_special, patches.shape[1])
        if not registers:
            return x
        split = config.num_special
        return jnp.concatenate([x[:, :split], *registers, x[:, split:]], axis=1)

    def _patches(self, images: Images) -> tuple[jax.Array, Size | jax.Array]:
        """Embedded patches (B, N, D), and their grid: that of all images, or of each (B, 2)."""
        if isinstance(images, PatchSequence):
            x = self.patch_embed.embed_patches(images.values)
            return (self.patch_norm(x) if self.config.patch_norm else x), images.grid
        x = self.patch_embed(images)
        x = self.patch_norm(x) if self.config.patch_norm else x
        batch, rows, columns, _ = x.shape
        return x.reshape(batch, rows * columns, -1), (rows, columns)

    def _angles(self, images: Images, rng: jax.Array | None) -> jax.Array | None:
        """Rotation (1, num_prefix + h w, K / 2) of all tokens, scaled at random with a key."""
        config = self.config
        if config.position_init != "rotary" or isinstance(images, PatchSequence):
            return None
        size, drop = (images.shape[1], images.shape[2]), config.drop_remainder
        grid = grid_of(size, config.patch_size, drop_remainder=drop)
        factor = config.rotary_rescale
        scale: float | jax.Array = 1.0
        if rng is not None and factor > 1:
            scale = random_scale(jax.random.fold_in(rng, 1), factor)
        head_dim = config.width // config.num_heads
        return patch_angles(grid, head_dim, config.num_prefix, scale=scale)

    def _positions(self, grid: Size | jax.Array, num_prefix: int, length: int = 0) -> jax.Array:
        """Positions of the leading tokens and of a grid of patches, compute type.

        For a grid per image (B, 2), those of `length` patches per image: (B, num_prefix + N, D).
        """
        if isinstance(grid, jax.Array):
            config = self.config
            given = self.positions[...], config.table_grid, grid, length
            table = positions_of_grids(*given, num_prefix, config.position_resize)
            return table.astype(self.dtype)
        if self.config.position_init == "fixed_sincos":
            return self.config.fixed_positions(grid, self.config.width).astype(self.dtype)
        rule = self.config.position_resize
        table = resize_positions(
            self.positions[...], self.config.table_grid, grid, num_prefix, rule
        )
        return table.astype(self.dtype)
