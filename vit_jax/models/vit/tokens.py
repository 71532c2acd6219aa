"""Tokens of an image: class token, distillation token, registers and patches, with positions."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.models.layers.parameters import metadata
from vit_jax.models.layers.patch_embedding import PatchEmbedding
from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.models.sizes import Size

if TYPE_CHECKING:
    from vit_jax.models.vit.model import ViTConfig


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
        """Creates the learned tokens and positions."""
        config, width = self.config, self.config.width
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
        if config.position_init == "fixed_sincos":
            return
        rows, columns = config.table_grid
        prefix = config.num_special if config.prefix_positions else 0
        positions = init(rngs.params(), (prefix + rows * columns, width))
        if config.position_init == "sincos":
            positions = positions.at[prefix:].set(sincos_positions(config.table_grid, width))
        self.positions = nnx.Param(positions, **metadata("length", "embed", decay=False))

    def _embed(self, images: jax.Array) -> jax.Array:
        """Embeds all tokens with their positions: (B, num_prefix + h w, D)."""
        config = self.config
        x = self.patch_embed(images)
        batch, rows, columns, _ = x.shape
        grid, patches = (rows, columns), x.reshape(batch, rows * columns, -1)

        def prefix(tokens: list[nnx.Param]) -> list[jax.Array]:
            values = [token[...].astype(self.dtype) for token in tokens]
            return [jnp.broadcast_to(v, (batch, *v.shape)) for v in values]

        special = [self.class_token] if config.class_token else []
        special += [self.distillation_token] if config.distillation else []
        registers = prefix([self.registers] if config.num_registers else [])
        if not config.prefix_positions or config.position_init == "fixed_sincos":
            patches = patches + self._positions(grid, 0)
            return jnp.concatenate([*prefix(special), *registers, patches], axis=1)
        x = jnp.concatenate([*prefix(special), patches], axis=1)
        x = x + self._positions(grid, config.num_special)
        if not registers:
            return x
        split = config.num_special
        return jnp.concatenate([x[:, :split], *registers, x[:, split:]], axis=1)

    def _positions(self, grid: Size, num_prefix: int) -> jax.Array:
        """Positions of the leading tokens and of a grid of patches, compute type."""
        if self.config.position_init == "fixed_sincos":
            return self.config.fixed_positions(grid, self.config.width).astype(self.dtype)
        rule = self.config.position_resize
        table = resize_positions(
            self.positions[...], self.config.table_grid, grid, num_prefix, rule
        )
        return table.astype(self.dtype)
