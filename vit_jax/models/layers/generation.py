"""Generation of captions, token by token: beam search, of which greedy is a case, and sampling.

The functions take the logits of the next token as a function of the tokens so far, so that they
depend on no architecture. Each token is computed from the whole row again; there is no cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# (tokens (N, T), position) -> logits of the token at this position (N, V), float32.
NextLogits = Callable[[jax.Array, jax.Array], jax.Array]


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
        next_logits: logits of the next token. Rows of N = batch * beams: all beams of an example
            follow one another.
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
        at, tokens, scores, done = carry
        logits = next_logits(tokens.reshape(-1, length), at)
        gains = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, -1)
        vocabulary = jnp.arange(gains.shape[-1])
        gains = jnp.where(vocabulary == pad_id, -jnp.inf, gains)
        # A caption that has ended goes on with padding, at no cost.
        gains = jnp.where(done[..., None], jnp.where(vocabulary == pad_id, 0.0, -jnp.inf), gains)
        totals = (scores[..., None] + gains).reshape(batch, -1)
        scores, best = jax.lax.top_k(totals, beams)
        beam, token = best // len(vocabulary), best % len(vocabulary)
        tokens = jnp.take_along_axis(tokens, beam[..., None], axis=1)
        done = jnp.take_along_axis(done, beam, axis=1) | (token == end_id)
        return at + 1, tokens.at[:, :, at].set(token), scores, done

    def goes_on(carry: Any) -> jax.Array:
        at, _, _, done = carry
        return (at < length) & ~jnp.all(done)

    start = jnp.asarray(len(given), jnp.int32), tokens, scores, jnp.zeros((batch, beams), bool)
    _, tokens, scores, _ = jax.lax.while_loop(goes_on, step, start)
    counts = jnp.maximum(jnp.sum(tokens[:, :, len(given) :] != pad_id, axis=-1), 1)
    best = jnp.argmax(scores / counts**length_penalty, axis=1)
    tokens = jnp.take_along_axis(tokens, best[:, None, None], axis=1)[:, 0]
    return Generated(tokens, jnp.take_along_axis(scores, best[:, None], axis=1)[:, 0])


def sample(
    next_logits: NextLogits,
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

    def step(at: jax.Array, carry: Any) -> Any:
        tokens, scores, done = carry
        logits = next_logits(tokens, at).astype(jnp.float32)
        allowed = jnp.where(jnp.arange(logits.shape[-1]) == pad_id, -jnp.inf, logits)
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, at)
        token = jax.vmap(jax.random.categorical)(now, nucleus(allowed / temperature, top_p))
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        token = jnp.where(done, pad_id, token).astype(jnp.int32)
        scores = scores + jnp.where(done, 0.0, own)
        return tokens.at[:, at].set(token), scores, done | (token == end_id)

    batch = len(keys)
    start = _opened((batch, length), given, pad_id), jnp.zeros(batch), jnp.zeros(batch, bool)
    tokens, scores, _ = jax.lax.fori_loop(len(given), length, step, start)
    return Generated(tokens, scores)


def _opened(shape: tuple[int, ...], given: Sequence[int], pad_id: int) -> jax.Array:
    """Rows of padding that start with the given ids."""
    tokens = jnp.full(shape, pad_id, jnp.int32)
    return tokens.at[..., : len(given)].set(jnp.asarray(given, jnp.int32))


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
