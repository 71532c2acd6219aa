"""Towers of CoCa as open_clip has published it: queries pool the image, a class token the text."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.inputs.patches import Images
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.layers.attention import CrossAttention, KeyValues
from vit_jax.models.layers.decoder import DecoderConfig, DecoderStack, check_length
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import LayersAbove, metadata
from vit_jax.models.vit.model import ViT, ViTConfig

Tokens = Float[Array, "batch tokens dim"]
Pooled = Float[Array, "batch dim"]


class QueryPooledViT(ViT):
    """ViT whose tokens are pooled by learned queries: the first for contrast, the others to read.

    The paper has a pooler for each of the two (Yu et al. 2022, section 3.2).
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        embed_dim: int,
        num_queries: int,
        num_heads: int,
        rngs: nnx.Rngs,
        dtype: Any,
        **execution: Any,
    ) -> None:
        """Builds the tower.

        Args:
            config: architecture, with `pool="none"`.
            embed_dim: number of features of a query E.
            num_queries: number of queries Q.
            num_heads: heads of the pooling attention.
            rngs: source of the parameters' keys.
            dtype: compute type.
            **execution: scan and remat, see `ViT`.
        """
        super().__init__(config, rngs=rngs, dtype=dtype, **execution)
        self.pooled_dim = embed_dim
        norm: dict[str, Any] = {"epsilon": config.norm_epsilon, "dtype": dtype, "rngs": rngs}
        self.queries = nnx.Param(
            initializers.normal(1.0)(rngs.params(), (num_queries, embed_dim)),
            **metadata("prefix", "embed", decay=False),
        )
        self.query_norm = layer_norm(embed_dim, **norm)
        self.key_norm = layer_norm(config.width, **norm)
        self.pooler = CrossAttention(
            embed_dim,
            num_heads,
            key_width=config.width,
            init=initializers.xavier_uniform(),
            dtype=dtype,
            rngs=rngs,
        )
        self.pooled_norm = layer_norm(embed_dim, **norm)

    @property
    def embed_dim(self) -> int:
        """Number of pooled features E."""
        return self.pooled_dim

    def encode_queries(self, images: Images, *, rng: Key[Array, ""] | None = None) -> Tokens:
        """Computes the normalised results of all queries.

        Args:
            images: (B, H, W, 3), normalised.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, Q, E), compute type.
        """
        tokens, _, _ = self._forward(images, rng, intermediates=False)
        keys, queries = self.key_norm(tokens), self.query_norm(self.queries[...].astype(self.dtype))
        queries = jnp.broadcast_to(queries, (keys.shape[0], *queries.shape))
        return self.pooled_norm(self.pooler(queries, keys, keys))

    def encode_image(self, images: Images, *, rng: Key[Array, ""] | None = None) -> Pooled:
        """Computes pooled features (B, E), those of the first query; see `encode_queries`."""
        return self.encode_queries(images, rng=rng)[:, 0]


class ClassTokenText(nnx.Module):
    """Causal text tower with a class token at the end."""

    def __init__(
        self, config: TextConfig, *, rngs: nnx.Rngs, dtype: Any, scan: bool, remat: str
    ) -> None:
        """Builds the tower.

        Args:
            config: architecture; `context_length` does not count the class token.
            rngs: source of the parameters' keys.
            dtype: compute type.
            scan: whether to scan the blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        if not config.causal:
            raise UserError("the text tower of CoCa is causal: set text.causal=True")
        if config.prompt_length or config.norm != "layer" or config.gated_mlp:
            raise UserError(
                "the text tower of CoCa has LayerNorms, plain MLPs and no learned prompt: expected "
                f"prompt_length=0, norm='layer', gated_mlp=False; found {config.prompt_length}, "
                f"{config.norm!r}, {config.gated_mlp}"
            )
        self.config, self.dtype, width = config, dtype, config.width
        self.token_embed = nnx.Embed(
            config.vocab_size,
            width,
            embedding_init=initializers.normal(0.02),
            embedding_metadata=metadata("vocab", "embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        small = initializers.normal(0.01)
        self.class_token = nnx.Param(
            small(rngs.params(), (1, width)), **metadata("prefix", "embed", decay=False)
        )
        self.positions = nnx.Param(
            small(rngs.params(), (config.context_length + 1, width)),
            **metadata("length", "embed", decay=False),
        )
        shared = {field.name for field in dataclasses.fields(DecoderConfig)}
        fields = {name: value for name, value in vars(config).items() if name in shared}
        blocks = DecoderConfig(**fields)
        self.blocks = DecoderStack(blocks, 0, scan=scan, remat=remat, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)

    @property
    def embed_dim(self) -> int:
        """Number of pooled features D."""
        return self.config.width

    def encode_tokens(
        self, tokens: Int[Array, "batch length"], pad_id: int = 0
    ) -> tuple[Pooled, Tokens]:
        """Computes pooled features and the states of all tokens.

        The mask of padding is that of the published weights: it is shifted by one token, so that
        the class token attends to the first padding token instead of itself.

        Args:
            tokens: ids (B, T), padded; at most `context_length`.
            pad_id: id that fills a text.

        Returns:
            Normalised class token (B, D), and the states (B, T, D), which are not normalised.

        Raises:
            UserError: more tokens than `context_length`.
        """
        batch, length = tokens.shape
        check_length(length, self.config.context_length, "text tower")
        x = self.token_embed(tokens)
        last = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (batch, 1, x.shape[-1]))
        x = jnp.concatenate([x, last], axis=1) + self.positions[: length + 1].astype(self.dtype)
        attended = jnp.pad(tokens != pad_id, ((0, 0), (1, 0)), constant_values=True)
        mask = jnp.tri(length + 1, dtype=bool) & attended[:, None, None]
        x = self.blocks(x, None, mask)
        return self.norm(x[:, -1]), x[:, :-1]

    def empty_cache(self, rows: int, length: int) -> KeyValues:
        """Allocates the cache of `next_states`, see `DecoderStack.empty_cache`.

        Raises:
            UserError: more tokens than `context_length`.
        """
        check_length(length, self.config.context_length, "text tower")
        return self.blocks.empty_cache(rows, length)

    def next_states(
        self, tokens: Int[Array, " rows"], at: Int[Array, ""], cache: KeyValues
    ) -> tuple[Float[Array, "rows dim"], KeyValues]:
        """Computes the states of one token of each row, those of `encode_tokens` at its index.

        No token attends to the class token, and no other token to padding that follows it.

        Args:
            tokens: ids (R,).
            at: index of the tokens.
            cache: keys and values of the tokens before, see `empty_cache`.

        Returns:
            States (R, D), which are not normalised, and the cache.
        """
        x = self.token_embed(tokens) + self.positions[...][at].astype(self.dtype)
        return self.blocks.step(x, at, cache, None)

    def encode_text(
        self, tokens: Int[Array, "batch length"], *, rng: Key[Array, ""] | None = None
    ) -> Pooled:
        """Computes pooled features (B, D), see `encode_tokens`; `rng` is not used."""
        del rng
        return self.encode_tokens(tokens)[0]

    def layers_above(self) -> LayersAbove:
        """Counts the blocks between each part and the output; the projection counts as one."""
        depth = self.config.depth
        first = dict.fromkeys(("token_embed", "class_token", "positions"), depth + 1)
        return {**first, "blocks/blocks": range(depth, 0, -1)}
