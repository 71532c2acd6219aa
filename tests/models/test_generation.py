"""Generation against brute force over all captions of a tiny vocabulary."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.layers.generation import beam_search, nucleus, sample

PAD, END, VOCABULARY, LENGTH, BATCH = 0, 3, 4, 3, 2
IDS = {"end_id": END, "pad_id": PAD}
# Logits of the token at each position, given the two tokens before it, for each example.
TABLE = np.random.default_rng(0).normal(
    scale=2, size=(BATCH, LENGTH, VOCABULARY, VOCABULARY, VOCABULARY)
)


def next_logits(last, at, cache):
    """The cache is the token before the last one."""
    rows = jnp.arange(len(last)) // (len(last) // BATCH)
    return jnp.asarray(TABLE, jnp.float32)[rows, at, cache[0], last], last[None]


def empty_cache(rows):
    return jnp.full((1, rows), PAD)


def log_probability(example, caption):
    """Log-likelihood of the tokens (n,) of a caption, its end included."""
    total, history = 0.0, [PAD, PAD]
    for at, token in enumerate(caption):
        logits = TABLE[example, at, history[0], history[1]]
        total += logits[token] - np.log(np.exp(logits).sum())
        history = [history[1], token]
    return total


def captions():
    """All captions: those that end, and those that are cut."""
    words = [token for token in range(VOCABULARY) if token not in (PAD, END)]
    for count in range(LENGTH):
        yield from ((*each, END) for each in itertools.product(words, repeat=count))
    yield from itertools.product(words, repeat=LENGTH)


def padded(caption):
    return [*caption, *[PAD] * (LENGTH - len(caption))]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_of_full_width_is_exhaustive(penalty):
    every = list(captions())
    found = jax.jit(
        lambda: beam_search(
            next_logits,
            empty_cache(BATCH * len(every)),
            BATCH,
            LENGTH,
            beams=len(every),
            length_penalty=penalty,
            **IDS,
        )
    )()
    for i in range(BATCH):
        scores = np.asarray([log_probability(i, caption) for caption in every])
        best = np.argmax(scores / np.asarray([len(each) for each in every]) ** penalty)
        assert found.tokens[i].tolist() == padded(every[best])
        np.testing.assert_allclose(found.scores[i], scores[best], rtol=1e-5)


def test_greedy_takes_the_most_likely_token():
    cache = empty_cache(BATCH)
    found = jax.jit(lambda: beam_search(next_logits, cache, BATCH, LENGTH, **IDS))()
    for i in range(BATCH):
        caption: list[int] = []
        while len(caption) < LENGTH and caption[-1:] != [END]:
            options = [x for x in range(VOCABULARY) if x != PAD]
            caption.append(max(options, key=lambda x: log_probability(i, [*caption, x])))
        assert found.tokens[i].tolist() == padded(caption)
        np.testing.assert_allclose(found.scores[i], log_probability(i, caption), rtol=1e-5)


def test_samples_have_the_probabilities_of_the_nucleus():
    top_p, temperature, draws = 0.7, 1.5, 20_000
    keys = jax.random.split(jax.random.key(0), BATCH * draws)
    options = {"top_p": top_p, "temperature": temperature, **IDS}
    cache = empty_cache(BATCH * draws)
    found = jax.jit(lambda: sample(next_logits, cache, keys, LENGTH, **options))()
    tokens, scores = found.tokens[draws:], found.scores[draws:]  # of the second example
    expected = dict.fromkeys(captions(), 0.0)
    for caption in expected:
        probability, history = 1.0, [PAD, PAD]
        for at, token in enumerate(caption):
            logits = TABLE[1, at, history[0], history[1]] / temperature
            powers = np.exp(logits) * (np.arange(VOCABULARY) != PAD)
            powers /= powers.sum()
            order = np.argsort(-powers)
            kept = order[: np.searchsorted(np.cumsum(powers[order]), top_p) + 1]
            probability *= powers[token] / powers[kept].sum() if token in kept else 0
            history = [history[1], token]
        expected[caption] = probability
    rows, counts = np.unique(np.asarray(tokens), axis=0, return_counts=True)
    drawn = {tuple(row): count / draws for row, count in zip(rows.tolist(), counts, strict=True)}
    assert sum(expected.values()) == pytest.approx(1)
    for caption, probability in expected.items():
        assert drawn.pop(tuple(padded(caption)), 0) == pytest.approx(probability, abs=0.02)
    assert not drawn
    first = tuple(x for x in tokens[0].tolist() if x != PAD)
    np.testing.assert_allclose(scores[0], log_probability(1, first), rtol=1e-5)


def test_the_nucleus_has_at_least_one_token():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.2]]))
    found = jax.jit(lambda: [nucleus(logits, top_p) for top_p in (1e-6, 0.49, 0.79, 1.0)])()
    assert np.isfinite(found).sum(axis=(1, 2)).tolist() == [1, 1, 2, 3]


def test_given_tokens_come_first_and_cost_nothing():
    cache = empty_cache(BATCH)
    found = jax.jit(lambda: beam_search(next_logits, cache, BATCH, LENGTH, given=(2,), **IDS))()
    for i in range(BATCH):
        caption = tuple(x for x in found.tokens[i].tolist() if x != PAD)
        assert caption[0] == 2
        own = log_probability(i, caption) - log_probability(i, caption[:1])
        np.testing.assert_allclose(found.scores[i], own, rtol=1e-5)
