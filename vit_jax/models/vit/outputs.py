"""Outputs of a ViT: pooling of the tokens and classification heads."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError
from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.heads import classifier_head
from vit_jax.models.layers.norm import NORMS
from vit_jax.models.layers.pooling import MAPHead, QueryPool, mean_over_tokens
from vit_jax.models.layers.transformer import Mask

if TYPE_CHECKING:
    from vit_jax.models.vit.model import ViTConfig

# Ways of pooling, see `ViTConfig.pool`.
POOLS = ("class", "mean", "mean_norm", "class_mean", "map", "query", "none")


class PooledOutputs(nnx.Module):
    """The part of a ViT after its blocks.

    Attributes:
        config: architecture.
        dtype: compute type.
    """

    config: "ViTConfig"
    dtype: Any

    def _make_outputs(self, rngs: nnx.Rngs) -> None:
        """Creates the final norm, the pooling head and the classification heads."""
        config = self.config
        if config.pool != "none":
            self.norm = NORMS[config.norm](
                config.width, epsilon=config.norm_epsilon, dtype=self.dtype, rngs=rngs
            )
        if config.pool == "map":
            self.map_head = MAPHead(config.block, dtype=self.dtype, rngs=rngs)
        if config.pool == "query":
            self.query_pool = QueryPool(config.block, dtype=self.dtype, rngs=rngs)
        if config.num_classes:
            self._make_heads(rngs)

    def _make_heads(self, rngs: nnx.Rngs) -> None:
        """Creates the heads: from zeros (ViT, MAE), or from 0.02 as the blocks (DeiT)."""
        config = self.config
        small = config.weight_init == "normal"
        init = initializers.normal(0.02) if small else initializers.zeros

        def head() -> nnx.Linear:
            return classifier_head(self.embed_dim, config.num_classes, kernel_init=init, rngs=rngs)

        self.head = head()
        if config.head_norm:
            self.head_norm = BatchNorm(
                self.embed_dim, affine=False, epsilon=1e-6, dtype=jnp.float32
            )
        if config.has_distillation_head:
            self.distillation_head = head()

    @property
    def embed_dim(self) -> int:
        """Number of pooled features D."""
        return self.config.embed_dim

    def _pool(self, tokens: jax.Array, mask: Mask = None) -> jax.Array:
        """Pooled features (B, D) of the tokens after the last block, whose padding is masked."""
        pool, split = self.config.pool, self.config.num_prefix
        if pool == "none":
            raise UserError("this tower has no pooled features (pool='none'); call `features`")
        if pool == "class":
            return self.norm(tokens[:, 0])
        patches = None if mask is None else mask[:, split:]
        if pool == "mean":
            return mean_over_tokens(self.norm(tokens[:, split:]), patches)
        if pool == "mean_norm":
            return self.norm(mean_over_tokens(tokens[:, split:], patches))
        if pool == "class_mean":
            tokens = self.norm(tokens)
            mean = mean_over_tokens(tokens[:, split:], patches)
            return jnp.concatenate([tokens[:, 0], mean], axis=-1)
        head = self.map_head if pool == "map" else self.query_pool
        return head(self.norm(tokens), mask)

    def _classify(self, tokens: jax.Array, mask: Mask = None, *, train: bool) -> jax.Array:
        """Logits of the tokens after the last block, the mean of those of both heads if any."""
        if self.config.has_distillation_head:
            by_class, by_distillation = self._classify_twice(tokens, mask)
            return (by_class + by_distillation) / 2
        pooled = self._pool(tokens, mask).astype(jnp.float32)
        return self.head(self.head_norm(pooled, train=train) if self.config.head_norm else pooled)

    def _classify_twice(self, tokens: jax.Array, mask: Mask = None) -> tuple[jax.Array, jax.Array]:
        """Logits of the class token, and those of the distillation token."""
        pooled = self._pool(tokens, mask).astype(jnp.float32)
        distilled = self.norm(tokens[:, 1]).astype(jnp.float32)
        return self.head(pooled), self.distillation_head(distilled)
