"""Prediction of the tokens of captions from the patches of an image."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models.layers.attention import KeyValues
from vit_jax.models.layers.decoder import (
    DecoderConfig,
    DecoderStack,
    Mask,
    Memory,
    States,
    check_length,
)
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import metadata, weights


class TokenPredictor(nnx.Module):
    """Stack with a norm and a head over the vocabulary."""

    def __init__(
        self,
        config: DecoderConfig,
        memory_width: int,
        *,
        head_bias: bool = False,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ) -> None:
        """Builds the stack.

        Args:
            config: architecture.
            memory_width: number of features of a patch E.
            head_bias: whether the head has a bias; it then starts at zero.
            rngs: source of the parameters' keys.
            dtype: compute type.
            scan: whether to scan the blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, self.dtype, width = config, dtype, config.width
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.blocks = DecoderStack(config, memory_width, scan=scan, remat=remat, **execution)
        self.norm = layer_norm(
            width, epsilon=config.norm_epsilon, use_bias=config.use_bias, **execution
        )
        self.head = nnx.Linear(
            width,
            config.vocab_size,
            use_bias=head_bias,
            kernel_init=initializers.zeros if head_bias else initializers.normal(width**-0.5),
            kernel_metadata=metadata("embed", "vocab"),
            bias_metadata=metadata("vocab", decay=False),
            **execution,
        )

    def states(self, x: States, memory: Memory, mask: Mask) -> States:
        """Applies blocks and norm; the arguments are those of `DecoderBlock`."""
        return self.norm(self.blocks(x, memory.astype(self.dtype), mask))

    def key_values(self, memory: Memory) -> KeyValues:
        """Computes the keys and values of patches (B, N, E), see `DecoderStack.key_values`."""
        return self.blocks.key_values(memory.astype(self.dtype))

    def next_states(
        self,
        x: Float[Array, "rows width"],
        at: Int[Array, ""],
        cache: KeyValues,
        memory: KeyValues,
    ) -> tuple[Float[Array, "rows width"], KeyValues]:
        """Computes one row of `states` (R, D), and the cache; see `DecoderStack.step`."""
        x, cache = self.blocks.step(x, at, cache, memory)
        return self.norm(x), cache

    def logits(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch vocab"]:
        """Computes the logits of tokens, float32.

        Args:
            states: features (..., D), of a few tokens: a loss over whole captions is computed in
                parts, see `objectives.token_loss`.
        """
        return head_logits(states, *weights(self.head, jnp.float32))


class CaptionDecoder(TokenPredictor):
    """Predicts each token of a caption, from those before it or from the image alone."""

    def __init__(
        self, config: DecoderConfig, memory_width: int, *, rngs: nnx.Rngs, **execution: Any
    ) -> None:
        """Builds the decoder.

        Args:
            config: architecture.
            memory_width: number of features of a patch E.
            rngs: source of the parameters' keys.
            **execution: dtype, scan and remat, see `TokenPredictor`.
        """
        super().__init__(config, memory_width, head_bias=True, rngs=rngs, **execution)
        width = config.width
        self.token_embed = nnx.Embed(
            config.vocab_size + 1,  # the last one is the input of tokens that are not shown
            width,
            embedding_init=initializers.normal(config.embed_init),
            embedding_metadata=metadata("vocab", "embed", decay=False),
            dtype=self.dtype,
            rngs=rngs,
        )
        self.positions = nnx.Param(
            initializers.normal(width**-0.5)(rngs.params(), (config.context_length, width)),
            **metadata("length", "embed", decay=False),
        )

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        memory: Memory,
        parallel: Bool[Array, " batch"] | None = None,
    ) -> States:
        """Computes the features from which each token is predicted.

        An autoregressive example reads the tokens before the one to predict. A parallel example
        reads no token: all of its inputs are the additional id `vocab_size`, and each of them
        attends to all others (section 3, "Parallel prediction").

        Args:
            tokens: ids (B, T), padded after the end of text; at most `context_length`.
            memory: patches (B, N, E).
            parallel: whether each example is predicted in parallel (B,); None for none.

        Returns:
            Normalised features (B, T, D), compute type; `head` maps those at t to the logits of
            token t.

        Raises:
            UserError: more tokens than `context_length`.
        """
        length = tokens.shape[1]
        check_length(length, self.config.context_length, "decoder")
        inputs = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=self.config.pad_id)[:, :-1]
        mask = jnp.tri(length, dtype=bool)[None, None]
        if parallel is not None:
            inputs = jnp.where(parallel[:, None], self.config.vocab_size, inputs)
            mask = mask | parallel[:, None, None, None]
        x = self.token_embed(inputs) + self.positions[:length].astype(self.dtype)
        return self.states(x, memory, mask)

    def empty_cache(self, rows: int, length: int) -> KeyValues:
        """Allocates the cache of `step`, see `DecoderStack.empty_cache`.

        Raises:
            UserError: more tokens than `context_length`.
        """
        check_length(length, self.config.context_length, "decoder")
        return self.blocks.empty_cache(rows, length)

    def step(
        self,
        tokens: Int[Array, " rows"],
        at: Int[Array, ""],
        cache: KeyValues,
        memory: KeyValues,
    ) -> tuple[Float[Array, "rows width"], KeyValues]:
        """Computes the features from which the token at one index is predicted.

        Args:
            tokens: ids before it (R,); `pad_id` at index 0.
            at: index of the token; the tokens before it were read in earlier calls.
            cache: keys and values of the tokens before, see `empty_cache`.
            memory: keys and values of the patches, see `key_values`.

        Returns:
            Normalised features (R, D), those of `__call__` at this index, and the cache.
        """
        position = self.positions[...][at].astype(self.dtype)
        return self.next_states(self.token_embed(tokens) + position, at, cache, memory)


def head_logits(
    states: Float[Array, "*batch width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
) -> Float[Array, "*batch vocab"]:
    """Computes logits in float32, from products in the type of the states.

    Args:
        states: (..., D).
        kernel: (D, V).
        bias: (V,).
    """
    kernel = kernel.astype(states.dtype)
    return jnp.matmul(states, kernel, preferred_element_type=jnp.float32) + bias
