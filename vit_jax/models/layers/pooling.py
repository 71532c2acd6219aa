"""Attention pooling of tokens to one vector."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.models.layers.mlp import Mlp
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.layers.transformer import BlockConfig


class MAPHead(nnx.Module):
    """Multi-head attention pooling (Zhai et al. 2022, "Scaling Vision Transformers", section 2.2).

    A learned probe attends to the tokens (B, N, D); the result x becomes x + mlp(norm(x)): (B, D).
    """

    def __init__(self, config: BlockConfig, *, dtype: Any, rngs: nnx.Rngs):
        width, heads = config.width, config.num_heads
        head_dim = width // heads
        xavier = initializers.xavier_uniform()
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.probe = nnx.Param(
            xavier(rngs.params(), (1, width)), **metadata("prefix", "embed", decay=False)
        )
        self.query = nnx.LinearGeneral(
            width,
            (heads, head_dim),
            kernel_init=initializers.normal(width**-0.5),
            kernel_metadata=metadata("embed", "heads", "head_dim"),
            bias_metadata=metadata("heads", "head_dim", decay=False),
            **common,
        )
        self.key_value = nnx.LinearGeneral(
            width,
            (2, heads, head_dim),
            kernel_init=initializers.normal(width**-0.5),
            kernel_metadata=metadata("embed", "qkv", "heads", "head_dim"),
            bias_metadata=metadata("qkv", "heads", "head_dim", decay=False),
            **common,
        )
        self.out = nnx.LinearGeneral(
            (heads, head_dim),
            width,
            axis=(-2, -1),
            kernel_init=initializers.normal(width**-0.5),
            kernel_metadata=metadata("heads", "head_dim", "embed"),
            bias_metadata=metadata("embed", decay=False),
            **common,
        )
        self.norm = layer_norm(width, epsilon=config.norm_epsilon, **common)
        self.mlp = Mlp(
            width,
            config.mlp_dim,
            activation=config.activation,
            in_init=xavier,
            out_init=xavier,
            **common,
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        probe = jnp.broadcast_to(self.probe[...], (len(tokens), 1, tokens.shape[-1]))
        key, value = jnp.moveaxis(self.key_value(tokens), 2, 0)  # (B, N, H, hd) each
        x = jax.nn.dot_product_attention(self.query(probe.astype(tokens.dtype)), key, value)
        x = self.out(x)[:, 0]
        return x + self.mlp(self.norm(x))
