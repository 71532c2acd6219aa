"""Contrastive captioner (Yu et al. 2022, "CoCa"), as open_clip has published it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIP, CLIPConfig, as_embedding
from vit_jax.models.coca.towers import ClassTokenText, QueryPooledViT
from vit_jax.models.layers.attention import KeyValues
from vit_jax.models.layers.caption_decoder import TokenPredictor
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.vit.model import ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoCaConfig(CLIPConfig):
    """Architecture of a contrastive captioner.

    Attributes:
        image: architecture of the image tower, a ViT with `pool="none"`.
        decoder: architecture of the decoder, which reads the states of the text tower.
        num_queries: number of queries that pool the image; the first one is contrasted, the
            decoder attends to the others.
        pooler_heads: heads of the pooling attention.
    """

    decoder: DecoderConfig
    num_queries: int = 256
    pooler_heads: int = 8

    def make(self, **execution: Any) -> "CoCa":
        """Builds the module with fresh parameters; the arguments are those of `CLIP`."""
        return CoCa(self, **execution)

    def __post_init__(self) -> None:
        """Checks that towers and decoder fit."""
        if not isinstance(self.image, ViTConfig) or self.image.pool != "none":
            raise UserError("the image tower of CoCa is a ViT with image.pool='none'")
        if self.num_queries < 2:
            raise UserError(f"num_queries={self.num_queries}: expected 2 or more")
        if self.decoder.width != self.text.width:
            raise UserError(
                f"decoder.width={self.decoder.width}: expected that of the text tower, whose "
                f"states it reads, {self.text.width}"
            )


class CoCa(CLIP):
    """Embeds images and texts, and predicts captions from the states of their tokens.

    Attributes:
        num_given: number of leading tokens of a caption that are read but not predicted.
    """

    config: CoCaConfig
    num_given = 1  # the start of a text

    def __init__(
        self, config: CoCaConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, **execution: Any
    ) -> None:
        """Builds the model.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            **execution: scan and remat, see `CLIP`.
        """
        super().__init__(config, rngs=rngs, dtype=dtype, **execution)
        self.decoder = TokenPredictor(
            config.decoder, config.embed_dim, rngs=rngs, dtype=dtype, **execution
        )

    def _make_towers(self, execution: dict[str, Any]) -> tuple[QueryPooledViT, ClassTokenText]:
        config = self.config
        image = QueryPooledViT(
            config.image,
            embed_dim=config.embed_dim,
            num_queries=config.num_queries,
            num_heads=config.pooler_heads,
            **execution,
        )
        return image, ClassTokenText(config.text, **execution)

    def encode_memory(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch queries dim"]:
        """Computes the features that the decoder attends to.

        Args:
            images: (B, H, W, 3), normalised.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            Results of all queries except the first (B, Q - 1, embed_dim), compute type.
        """
        return self.image.encode_queries(images, rng=rng)[:, 1:]

    def caption_states(
        self,
        tokens: Int[Array, "batch length"],
        memory: Float[Array, "batch queries dim"],
        parallel: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Computes the features from which each token is predicted.

        Args:
            tokens: ids (B, T), padded.
            memory: see `encode_memory`.
            parallel: None; the decoder reads tokens.

        Returns:
            (B, T, D), compute type; `decoder.logits` maps those at t to the logits of token t.
            Those of the first token, which is not predicted, are zero.

        Raises:
            UserError: parallel prediction.
        """
        _refuse(parallel)
        return self._decode(self.text.encode_tokens(tokens, self.config.decoder.pad_id)[1], memory)

    def caption_cache(self, rows: int, length: int) -> tuple[KeyValues, KeyValues]:
        """Allocates the caches of text tower and decoder, see `DecoderStack.empty_cache`."""
        text = self.text.empty_cache(rows, length)
        return text, self.decoder.blocks.empty_cache(rows, length)

    def next_caption_states(
        self,
        tokens: Int[Array, " rows"],
        at: Int[Array, ""],
        cache: tuple[KeyValues, KeyValues],
        memory: KeyValues,
    ) -> tuple[Float[Array, "rows width"], tuple[KeyValues, KeyValues]]:
        """Computes `caption_states` at one index.

        Args:
            tokens: ids before it (R,).
            at: index of the token; the tokens before it were read in earlier calls.
            cache: see `caption_cache`.
            memory: keys and values of `encode_memory`, see `TokenPredictor.key_values`.

        Returns:
            Features (R, D), and the caches.
        """
        # Nothing is predicted at 0. The call at 1 replaces what that at 0 writes.
        read = jnp.maximum(at - 1, 0)
        text, own = cache
        x, text = self.text.next_states(tokens, read, text)
        states, own = self.decoder.next_states(x, read, own, memory)
        return states, (text, own)

    def encode_pairs(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch length"],
        parallel: Bool[Array, " batch"] | None = None,
        *,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[
        Float[Array, "batch dim"], Float[Array, "batch dim"], Float[Array, "batch length features"]
    ]:
        """Computes embeddings and the features of captions with one pass through each tower.

        Args:
            images: (B, H, W, 3), normalised.
            tokens: ids of their captions (B, context_length).
            parallel: None, see `caption_states`.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            Embeddings of images and texts (B, embed_dim), float32, of length 1, and the features
            from which each token is predicted (B, T, D), see `caption_states`.
        """
        _refuse(parallel)
        queries = self.image.encode_queries(images, rng=rng)
        text, states = self.text.encode_tokens(tokens, self.config.decoder.pad_id)
        return (
            as_embedding(self.image_projection(queries[:, 0]), True),
            as_embedding(self.text_projection(text), True),
            self._decode(states, queries[:, 1:]),
        )

    def _decode(
        self,
        states: Float[Array, "batch length width"],
        memory: Float[Array, "batch queries dim"],
    ) -> Float[Array, "batch length width"]:
        """Features from which each token is predicted, by the states of those before it."""
        mask = jnp.tri(states.shape[1] - 1, dtype=bool)[None, None]
        predicted = self.decoder.states(states[:, :-1], memory, mask)
        return jnp.pad(predicted, ((0, 0), (1, 0), (0, 0)))


def _refuse(parallel: jax.Array | None) -> None:
    if parallel is not None:
        raise UserError("CoCa does not predict in parallel: set parallel_fraction=0")
