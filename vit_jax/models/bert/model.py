"""BERT (Devlin et al. 2019), without a pooler, for masks and positions of the caller's choice."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int

from vit_jax.errors import UserError, check_name
from vit_jax.models.layers.mlp import ACTIVATIONS
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import LayersAbove, metadata
from vit_jax.models.layers.post_norm import PostNormBlock
from vit_jax.models.layers.stacking import Stack

_INIT = initializers.normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Architecture of a BERT; the defaults are those of bert-base-uncased.

    Attributes:
        vocab_size: number of token ids.
        context_length: number of tokens that a text may have.
        num_positions: rows of the table of positions.
        num_segments: rows of the table of segments, of which texts here have the first.
        width: number of features D.
        depth: number of blocks.
        num_heads: attention heads; divides `width`.
        mlp_dim: hidden units of the MLP.
        activation: key of `layers.mlp.ACTIVATIONS`.
        norm_epsilon: epsilon of LayerNorm.
    """

    vocab_size: int = 30522
    context_length: int = 512
    num_positions: int = 512
    num_segments: int = 2
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-12

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_name(self.activation, ACTIVATIONS, "activation")
        if self.width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide width={self.width}")
        if self.context_length > self.num_positions:
            raise UserError(
                f"context_length={self.context_length}: expected at most "
                f"num_positions={self.num_positions}"
            )


class Bert(Stack):
    """Tokens (B, T) to features (B, T, D)."""

    def __init__(
        self,
        config: BertConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ) -> None:
        """Builds the tower.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            scan: whether to scan the blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, self.dtype = config, dtype
        self.token_embed = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=_INIT,
            embedding_metadata=metadata("vocab", "embed", decay=False),
            rngs=rngs,
        )
        self.positions = nnx.Param(
            _INIT(rngs.params(), (config.num_positions, config.width)),
            **metadata("length", "embed", decay=False),
        )
        self.segments = nnx.Param(
            _INIT(rngs.params(), (config.num_segments, config.width)),
            **metadata("segments", "embed", decay=False),
        )
        self.norm = layer_norm(config.width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)

        def make_block(rngs: nnx.Rngs) -> PostNormBlock:
            return PostNormBlock(
                config.width,
                config.num_heads,
                config.mlp_dim,
                activation=config.activation,
                norm_epsilon=config.norm_epsilon,
                init=_INIT,
                dtype=dtype,
                rngs=rngs,
            )

        super().__init__(make_block, config.depth, scan=scan, remat=remat, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"],
        mask: Bool[Array, "batch length length"],
    ) -> Float[Array, "batch length dim"]:
        """Computes the features of each token.

        Args:
            tokens: ids (B, T).
            positions: rows of the table of positions (B, T).
            mask: True where a token attends to another, (B, T, T).

        Returns:
            (B, T, D), compute type.

        Raises:
            UserError: more tokens than `context_length`.
        """
        allowed, length = self.config.context_length, tokens.shape[1]
        if length > allowed:
            raise UserError(
                f"found {length} tokens per caption: expected at most text.context_length={allowed}"
            )
        x = self.token_embed(tokens) + self.segments[0] + self.positions[...][positions]
        return self.apply_blocks(lambda block, x: (block(x, mask), None), self.norm(x))[0]

    def layers_above(self) -> LayersAbove:
        """Counts the blocks between each part and the output."""
        depth = self.config.depth
        tables = dict.fromkeys(("token_embed", "positions", "segments", "norm"), depth)
        return {**tables, "blocks": range(depth - 1, -1, -1)}
