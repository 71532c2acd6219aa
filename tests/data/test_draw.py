"""Draws of one of several transforms per batch."""

import collections

import numpy as np

from vit_jax.data.draw import Draw
from vit_jax.data.loader import Loader

BATCH = 4


def test_frequencies_and_determinism():
    draw = Draw(seed=1, outcomes=(0, 1, 1, 2))
    found = [draw(number) for number in range(1, 8001)]
    counts = collections.Counter(found)
    for choice, expected in ((0, 2000), (1, 4000), (2, 2000)):  # deviations: 39, 45, 39
        assert abs(counts[choice] - expected) < 200
    again = Draw(seed=1, outcomes=(0, 1, 1, 2))
    assert [again(number) for number in reversed(range(1, 8001))] == found[::-1]
    assert [Draw(seed=2, outcomes=(0, 1, 1, 2))(n) for n in range(1, 101)] != found[:100]
    # No memory of the previous batch: equal neighbours occur as often as by chance.
    pairs = np.mean(np.array(found[1:]) == np.array(found[:-1]))
    assert abs(pairs - (0.25**2 + 0.5**2 + 0.25**2)) < 0.03


def transform_of(length):
    """The value of an example and a random number, repeated to a length."""

    def transform(example, rng):
        return {"row": np.full(length, example), "random": np.full(length, rng.integers(1 << 30))}

    return transform


def loader(process_index=0, process_count=1):
    return Loader(
        range(10),
        [transform_of(length) for length in (1, 2, 3)],
        draw=Draw(seed=0, outcomes=(0, 1, 2)),
        batch_size=BATCH,
        seed=0,
        process_index=process_index,
        process_count=process_count,
    )


def test_batches_have_the_length_that_is_drawn_for_them():
    draw, whole = Draw(seed=0, outcomes=(0, 1, 2)), loader()
    batches = [next(whole) for _ in range(12)]
    assert [x["row"].shape for x in batches] == [(BATCH, draw(n) + 1) for n in range(1, 13)]
    # Rows and random numbers are those of a run without draws.
    plain = Loader(range(10), transform_of(1), batch_size=BATCH, seed=0)
    for batch in batches:
        expected = next(plain)
        for name in ("row", "random"):
            np.testing.assert_array_equal(batch[name][:, :1], expected[name])
    # Any number of processes, from any position.
    parts = [loader(index, 2) for index in range(2)]
    for part in parts:
        part.set_state({"examples": 7 * BATCH})
    for batch in batches[7:]:
        found = [next(part) for part in parts]
        for name in ("row", "random"):
            joined = np.concatenate([x[name] for x in found])
            np.testing.assert_array_equal(joined, batch[name])
