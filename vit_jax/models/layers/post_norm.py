"""Post-norm transformer block (Vaswani et al. 2017, section 3.1)."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float

from vit_jax.models.layers.attention import CrossAttention
from vit_jax.models.layers.mlp import Mlp
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import Initializer
from vit_jax.models.partitioning import constrain


class PostNormBlock(nnx.Module):
    """Block of BERT: x = norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        activation: str,
        norm_epsilon: float,
        init: Initializer,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the block.

        Args:
            width: number of features D.
            num_heads: attention heads; divides D.
            mlp_dim: hidden units of the MLP.
            activation: key of `layers.mlp.ACTIVATIONS`.
            norm_epsilon: epsilon of LayerNorm.
            init: initializer of all matrices.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        norm: dict[str, Any] = {"epsilon": norm_epsilon, **execution}
        self.attention = CrossAttention(width, num_heads, init=init, **execution)
        self.norm1 = layer_norm(width, **norm)
        self.mlp = Mlp(
            width, mlp_dim, activation=activation, in_init=init, out_init=init, **execution
        )
        self.norm2 = layer_norm(width, **norm)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length length"] | None,
        positions: Float[Array, "batch length width"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Applies the block.

        Args:
            x: tokens (B, N, D).
            mask: True where a token attends to another, (B, N, N); None for everywhere.
            positions: added to the inputs of queries and keys, (B, N, D); None for nothing.
        """
        x = constrain(x, "batch", "length", "embed")
        queries = x if positions is None else x + positions
        allowed = None if mask is None else mask[:, None]
        x = self.norm1(x + self.attention(queries, queries, x, allowed))
        x = self.norm2(x + self.mlp(x))
        return constrain(x, "batch", "length", "embed")
