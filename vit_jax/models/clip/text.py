"""Text transformer (Radford et al. 2021, "Learning Transferable Visual Models", section 2.4)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError, check_name
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import LayersAbove, check_layers, metadata
from vit_jax.models.layers.transformer import BlockConfig, Transformer

POOLS = ("eot", "last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Architecture of a text tower.

    Attributes:
        vocab_size: token ids.
        context_length: tokens a caption is padded or cut to.
        width: residual stream, D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden units of the MLP.
        activation: a key of `layers.ACTIVATIONS`.
        norm_epsilon: LayerNorm epsilon.
        causal: whether a token sees only those before it.
        pool: where features are taken: "eot" (first place of the largest id, which is the end of
            text, CLIP) or "last" (last place, padding or not, SigLIP).
        weight_init: a key of `transformer.BLOCK_INITS`.
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
    pool: str = "eot"
    weight_init: str = "clip"

    def __post_init__(self) -> None:
        check_name(self.pool, POOLS, "pool of the text tower")
        self.block  # noqa: B018 - refuses what no block can be

    @property
    def block(self) -> BlockConfig:
        """The blocks of the stack."""
        return BlockConfig(
            width=self.width,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            causal=self.causal,
            weight_init=self.weight_init,
        )


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
            config.block,
            config.depth,
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
        """Features of whole texts.

        Args:
            tokens: (B, context_length) integer ids, padded after the end of text.
            rng: key for training, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        x, _ = self._forward(tokens, rng, intermediates=False)
        return self.pool(x, tokens)

    def features(self, tokens: jax.Array, layers: Sequence[int]) -> list[jax.Array]:
        """Outputs of the named blocks: [(B, context_length, D), ...], before the final norm.

        Negative numbers count from the last block.
        """
        check_layers(layers, self.config.depth)
        _, blocks = self._forward(tokens, None, intermediates=True)
        assert blocks is not None
        return [blocks[layer] for layer in layers]

    def pool(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        """Normalised features (B, D) at the place that `config.pool` names.

        Args:
            x: output of the last block (B, context_length, D).
            tokens: (B, context_length) integer ids.
        """
        if self.config.pool == "last":
            return self.norm(x[:, -1])
        # EOT has the largest id, so that argmax finds its first occurrence.
        end = jnp.argmax(tokens, axis=-1)
        return self.norm(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])

    def layers_above(self) -> LayersAbove:
        """Blocks between each part and the output, the projection counting as one."""
        depth = self.config.depth
        return {
            "token_embed": depth + 1,
            "positions": depth + 1,
            "transformer/blocks": range(depth, 0, -1),
        }

    def _forward(
        self, tokens: jax.Array, rng: jax.Array | None, intermediates: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        if tokens.shape[1] != self.config.context_length:
            raise UserError(
                f"tokens are {tokens.shape[1]} long, the text tower expects "
                f"context_length={self.config.context_length}"
            )
        x = self.token_embed(tokens) + self.positions[...].astype(self.dtype)
        return self.transformer(x, rng, intermediates=intermediates)
