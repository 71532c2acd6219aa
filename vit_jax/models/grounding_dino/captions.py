"""Phrases of a caption: tokens attend within their phrase, and positions restart with it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Ids of [CLS], [SEP], "." and "?" in the vocabulary of BERT, which end a phrase.
SEPARATORS = (101, 102, 1012, 1029)


def phrase_layout(
    tokens: Int[Array, "batch length"],
) -> tuple[Bool[Array, "batch length length"], Int[Array, "batch length"]]:
    """Computes which tokens of a caption attend to each other (Liu et al. 2023, section 3.4).

    A phrase is what precedes a separator, together with it. Tokens that the last id of a row ends,
    or no separator, attend only to themselves: a caption ends in ".", and then [SEP].

    Args:
        tokens: ids (B, T).

    Returns:
        True where a token attends to another, (B, T, T), and the position of each token within its
        phrase (B, T).
    """
    length = tokens.shape[1]
    index = jnp.arange(length)
    separates = jnp.isin(tokens, jnp.asarray(SEPARATORS))
    end = jax.lax.cummin(jnp.where(separates, index, length), axis=1, reverse=True)
    last = jax.lax.cummax(jnp.where(separates, index, -1), axis=1)
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    in_phrase = (end > 0) & (end < length - 1)
    same = (end[:, :, None] == end[:, None]) & in_phrase[:, None]
    positions = jnp.where(in_phrase, index - before - 1, 0)
    return same | jnp.eye(length, dtype=bool), positions
