"""Text transformer (Radford et al. 2021, "Learning Transferable Visual Models", section 2.4)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError
from vit_jax.models.layers import Transformer, layer_norm, metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Architecture of a text tower.

    Attributes:
        vocab_size: token ids; the last one is the end of text (EOT), at which features are pooled.
        context_length: tokens a caption is padded or cut to.
        width: residual stream, D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden units of the MLP.
        activation: a key of `layers.ACTIVATIONS`.
        norm_epsilon: LayerNorm epsilon.
        causal: whether a token sees only those before it.
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048
    activation: str = "quick_gelu"
    norm_epsilon: float = 1e-5
    causal: bool = True

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide width={self.width}")


class TextTransformer(nnx.Module):
    """Tokens (B, context_length) to features (B, D)."""

    def __init__(
        self,
        config: TextConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ):
        self.config, self.dtype = config, dtype
        self.token_embed = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=initializers.normal(0.02),
            embedding_metadata=metadata("vocab", "embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        self.positions = nnx.Param(
            initializers.normal(0.01)(rngs.params(), (config.context_length, config.width)),
            **metadata("length", "embed", decay=False),
        )
        self.transformer = Transformer(
            config.width,
            config.depth,
            config.num_heads,
            config.mlp_dim,
            causal=config.causal,
            activation=config.activation,
            norm_epsilon=config.norm_epsilon,
            max_drop_path=0.0,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(config.width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)

    @property
    def embed_dim(self) -> int:
        """Width D of the pooled features."""
        return self.config.width

    def encode_text(self, tokens: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Features at the end-of-text token.

        Args:
            tokens: (B, context_length) integer ids, zero-padded after EOT.
            rng: key for training, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        if tokens.shape[1] != self.config.context_length:
            raise UserError(
                f"tokens are {tokens.shape[1]} long, the text tower expects "
                f"context_length={self.config.context_length}"
            )
        x = self.token_embed(tokens) + self.positions[...].astype(self.dtype)
        x, _ = self.transformer(x, rng)
        # EOT has the largest id, so that argmax finds its first occurrence.
        end = jnp.argmax(tokens, axis=-1)
        return self.norm(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])
