"""Pooling of tokens to one vector per example, by attention or by the mean."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.models.layers.attention import heads_projection, output_projection
from vit_jax.models.layers.mlp import Mlp
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.layers.transformer import BlockConfig, Mask
from vit_jax.models.ops.attention import attention


def mean_over_tokens(
    tokens: Float[Array, "batch length width"], mask: Mask = None
) -> Float[Array, "batch width"]:
    """Averages the tokens of each example.

    Args:
        tokens: (B, N, D).
        mask: see `transformer.Mask`.
    """
    return jnp.mean(tokens, axis=1, where=None if mask is None else mask[..., None])


class QueryPool(nnx.Module):
    """Multi-head attention of one learned query, which is not projected (AIMv2's dual encoder)."""

    def __init__(self, config: BlockConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the head.

        Args:
            config: width, heads and biases of keys and values, those of the tower's blocks.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width, heads, small = config.width, config.num_heads, initializers.normal(0.02)
        common: dict[str, Any] = {"init": small, "dtype": dtype, "rngs": rngs}
        self.query = nnx.Param(
            small(rngs.params(), (1, width)), **metadata("prefix", "embed", decay=False)
        )
        self.key_value = heads_projection(
            width, heads, parts=2, use_bias=config.qkv_bias == "qkv", **common
        )
        self.out = output_projection(width, heads, **common)

    def __call__(
        self, tokens: Float[Array, "batch length width"], mask: Mask = None
    ) -> Float[Array, "batch width"]:
        """Pools the tokens of each example.

        Args:
            tokens: (B, N, D).
            mask: see `Mask`.
        """
        key, value = jnp.moveaxis(self.key_value(tokens), 2, 0)  # (B, N, H, D / H) each
        query = self.query[...].astype(key.dtype).reshape(1, 1, *key.shape[2:])
        keys = None if mask is None else mask[:, None, None]
        query = jnp.broadcast_to(query, (key.shape[0], *query.shape[1:]))
        x = attention(query, key, value, mask=keys)
        return self.out(x)[:, 0]


class MAPHead(nnx.Module):
    """Multi-head attention pooling (Zhai et al. 2022, "Scaling Vision Transformers", section 2.2).

    A learned probe attends to the tokens; the result x becomes x + mlp(norm(x)).
    """

    def __init__(self, config: BlockConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the head.

        Args:
            config: width, heads, MLP, activation and epsilon, those of the tower's blocks.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width, heads = config.width, config.num_heads
        xavier, small = initializers.xavier_uniform(), initializers.normal(width**-0.5)
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.probe = nnx.Param(
            xavier(rngs.params(), (1, width)), **metadata("prefix", "embed", decay=False)
        )
        self.query = heads_projection(width, heads, init=small, **common)
        self.key_value = heads_projection(width, heads, parts=2, init=small, **common)
        self.out = output_projection(width, heads, init=small, **common)
        self.norm = layer_norm(width, epsilon=config.norm_epsilon, **common)
        self.mlp = Mlp(
            width,
            config.mlp_dim,
            activation=config.activation,
            in_init=xavier,
            out_init=xavier,
            **common,
        )

    def __call__(
        self, tokens: Float[Array, "batch length width"], mask: Mask = None
    ) -> Float[Array, "batch width"]:
        """Pools the tokens of each example.

        Args:
            tokens: (B, N, D).
            mask: see `Mask`.
        """
        probe = jnp.broadcast_to(self.probe[...], (tokens.shape[0], 1, tokens.shape[-1]))
        key, value = jnp.moveaxis(self.key_value(tokens), 2, 0)  # (B, N, H, D / H) each
        keys = None if mask is None else mask[:, None, None]
        x = attention(self.query(probe.astype(tokens.dtype)), key, value, mask=keys)
        x = self.out(x)[:, 0]
        return x + self.mlp(self.norm(x))
