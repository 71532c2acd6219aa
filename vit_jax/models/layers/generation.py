"""Generation of captions, token by token: beam search, of which greedy is a case, and sampling.

The functions take the logits of the next token as a function of the token before it and of a cache,
in which an architecture keeps what it has computed from the tokens so far.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# Pytree of arrays (layers, N, ...).
Cache = Any
# (ids before a position (N,), position, cache) -> logits of the token at it (N, V), float32, and
# the cache with these ids. Positions are visited in order; padding stands before position 0.
NextLogits = Callable[[jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]


class Generated(NamedTuple):
    """Generated captions.

    Attributes:
        tokens: ids (B, T); padding follows the end of text.
        scores: log-likelihood of each caption, the end of text included and given ids excluded,
            float32 (B,).
    """

    tokens: Int[Array, "batch length"]
    scores: Float[Array, " batch"]


def beam_search(
    next_logits: NextLogits,
    cache: Cache,
    batch: int,
    length: int,
    *,
    end_id: int,
    pad_id: int,
    given: Sequence[int] = (),
    beams: int = 1,
    length_penalty: float = 0.0,
) -> Generated:
    """Searches for the most likely caption of each example.

    Args:
        next_logits: logits of the next token, of N = batch * beams rows: all beams of an example
            follow one another.
        cache: first cache of `next_logits`.
        batch: number of examples B.
        length: largest number of tokens T. A caption without an end until there is cut.
        end_id: id that closes a caption.
        pad_id: id that fills a caption, which is never generated before its end.
        given: ids with which every caption starts.
        beams: number of captions that are kept at a time; 1 is greedy.
        length_penalty: exponent of the number of tokens by which the log-likelihood is divided in
            the choice of the caption at the end (Wu et al. 2016, section 7, simplified): 0 for the
            most likely caption, 1 for the mean per token.
    """
    first = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
    tokens = _opened((batch, beams, length), given, pad_id)
    scores = jnp.broadcast_to(first, (batch, beams))

    def step(carry: Any) -> Any:
        at, done, tokens, scores, cache = carry
        logits, cache = next_logits(_token_before(tokens, at, pad_id).reshape(-1), at, cache)
        gains = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, -1)
        vocabulary = jnp.arange(gains.shape[-1])
        gains = jnp.where(vocabulary == pad_id, -jnp.inf, gains)
        # Given tokens, and the padding of a caption that has ended, are there already, at no cost.
        there = jnp.where(vocabulary == tokens[:, :, at][..., None], 0.0, -jnp.inf)
        gains = jnp.where((done | (at < len(given)))[..., None], there, gains)
        totals = (scores[..., None] + gains).reshape(batch, -1)
        scores, best = jax.lax.top_k(totals, beams)
        beam, token = best // len(vocabulary), best % len(vocabulary)
        tokens = jnp.take_along_axis(tokens, beam[..., None], axis=1)
        done = jnp.take_along_axis(done, beam, axis=1) | (token == end_id)
        if beams > 1:
            cache = jax.tree.map(lambda x: _take_beams(x, beam), cache)
        return at + 1, done, tokens.at[:, :, at].set(token), scores, cache

    tokens, scores = _until_done(step, length, tokens, scores, cache)
    counts = jnp.maximum(jnp.sum(tokens[:, :, len(given) :] != pad_id, axis=-1), 1)
    best = jnp.argmax(scores / counts**length_penalty, axis=1)
    tokens = jnp.take_along_axis(tokens, best[:, None, None], axis=1)[:, 0]
    return Generated(tokens, jnp.take_along_axis(scores, best[:, None], axis=1)[:, 0])


def sample(
    next_logits: NextLogits,
    cache: Cache,
    keys: Key[Array, " batch"],
    length: int,
    *,
    end_id: int,
    pad_id: int,
    given: Sequence[int] = (),
    top_p: float = 1.0,
    temperature: float = 1.0,
) -> Generated:
    """Draws a caption for each example (Holtzman et al. 2020, section 3.1, "Nucleus Sampling").

    Args:
        next_logits: logits of the next token, of N = B rows.
        cache: first cache of `next_logits`.
        keys: PRNG key of each example (B,).
        length: largest number of tokens T.
        end_id: id that closes a caption.
        pad_id: id that fills a caption, which is never drawn.
        given: ids with which every caption starts.
        top_p: tokens are drawn from the smallest set of the most probable ones whose probabilities
            add up to it; 1 for all tokens.
        temperature: divisor of the logits.

    Returns:
        Captions, with their log-likelihood at temperature 1 over all tokens.
    """

    def step(carry: Any) -> Any:
        at, done, tokens, scores, cache = carry
        logits, cache = next_logits(_token_before(tokens, at, pad_id), at, cache)
        logits = logits.astype(jnp.float32)
        allowed = jnp.where(jnp.arange(logits.shape[-1]) == pad_id, -jnp.inf, logits)
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, at)
        token = jax.vmap(jax.random.categorical)(now, nucleus(allowed / temperature, top_p))
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        there = done | (at < len(given))
        token = jnp.where(there, tokens[:, at], token).astype(jnp.int32)
        scores = scores + jnp.where(there, 0.0, own)
        return at + 1, done | (token == end_id), tokens.at[:, at].set(token), scores, cache

    batch = len(keys)
    tokens = _opened((batch, length), given, pad_id)
    return Generated(*_until_done(step, length, tokens, jnp.zeros(batch), cache))


def _opened(shape: tuple[int, ...], given: Sequence[int], pad_id: int) -> jax.Array:
    """Rows of padding that start with the given ids."""
    tokens = jnp.full(shape, pad_id, jnp.int32)
    return tokens.at[..., : len(given)].set(jnp.asarray(given, jnp.int32))


def _token_before(tokens: jax.Array, at: jax.Array, pad_id: int) -> jax.Array:
    """The ids before a position, of rows (..., T)."""
    return jnp.where(at > 0, tokens[..., at - 1], pad_id)


def _take_beams(x: jax.Array, beam: jax.Array) -> jax.Array:
    """Gives each beam the rows of another (batch, beams), in a part of a cache."""
    index = beam.reshape(1, *beam.shape, *(1,) * (x.ndim - 2))
    beams = x.reshape(len(x), *beam.shape, *x.shape[2:])
    return jnp.take_along_axis(beams, index, axis=2).reshape(x.shape)


def _until_done(
    step: Callable[[Any], Any], length: int, tokens: jax.Array, scores: jax.Array, cache: Cache
) -> tuple[jax.Array, jax.Array]:
    """Tokens and scores after the steps of all positions, or until all captions have ended."""

    def goes_on(carry: Any) -> jax.Array:
        at, done, *_ = carry
        return (at < length) & ~jnp.all(done)

    start = jnp.asarray(0, jnp.int32), jnp.zeros(scores.shape, bool), tokens, scores, cache
    _, _, tokens, scores, _ = jax.lax.while_loop(goes_on, step, start)
    return tokens, scores


def nucleus(logits: Float[Array, "batch vocab"], top_p: float) -> Float[Array, "batch vocab"]:
    """Sets the logits outside the smallest set of probability `top_p` to -inf.

    Args:
        logits: (B, V).
        top_p: probability of the set, in (0, 1]; the most probable token is always in it.
    """
    order = jnp.argsort(-logits, axis=-1)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(kept, logits, -jnp.inf)
