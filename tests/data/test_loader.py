"""The loader: order, workers, processes, exact position, groups."""

import numpy as np
import pytest

from vit_jax.data.loader import Loader, group_rows
from vit_jax.data.sources import Source
from vit_jax.errors import UserError


class Numbers:
    """Examples that are their own indices."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"id": index}


def with_noise(example, rng):
    return {"id": np.int64(example["id"]), "noise": rng.random()}


def take(count, **changes):
    options = {"batch_size": 6, "seed": 3, **changes}
    loader = Loader(Numbers(20), with_noise, **options)
    return [next(loader) for _ in range(count)]


def same(a, b):
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_every_example_once_per_epoch_in_a_new_order():
    ids = np.concatenate([b["id"] for b in take(10)])
    epochs = ids.reshape(3, 20)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], np.arange(20))


def test_augmentation_differs_between_epochs():
    noise = np.concatenate([b["noise"] for b in take(10)])
    assert len(np.unique(noise)) == 60


def test_seed():
    assert same(take(4), take(4))
    assert not same(take(4), take(4, seed=4))


def test_repeats_are_views_of_one_example_in_a_row():
    """The three views differ; three epochs contain every example three times."""
    batches = take(10, repeats=3)
    ids = np.concatenate([b["id"] for b in batches]).reshape(20, 3)
    assert (ids == ids[:, :1]).all()
    np.testing.assert_array_equal(np.sort(ids[:, 0]), np.arange(20))
    assert len(np.unique(np.concatenate([b["noise"] for b in batches]))) == 60
    assert same(batches[:4], take(4, repeats=3, workers=2))
    with pytest.raises(UserError, match="repeats=0: expected 1"):
        take(1, repeats=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(workers):
    assert same(take(8), take(8, workers=workers))


def test_training_processes_read_parts_of_the_same_global_batches():
    whole = take(5)
    parts = [take(5, process_index=i, process_count=3) for i in range(3)]
    for k in range(5):
        for field in ("id", "noise"):
            together = np.concatenate([part[k][field] for part in parts])
            np.testing.assert_array_equal(together, whole[k][field])


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (1, 0)])
def test_resume_sees_the_very_next_example(before, after):
    """In the middle of an epoch, and with another number of workers."""
    whole = take(9)
    first = Loader(Numbers(20), with_noise, batch_size=6, seed=3, workers=before)
    for _ in range(4):
        next(first)
    second = Loader(Numbers(20), with_noise, batch_size=6, seed=3, workers=after)
    second.set_state(first.get_state())
    assert same([next(second) for _ in range(5)], whole[4:])


def test_an_epoch_has_one_member_of_each_group():
    groups = [[0, 1, 2], [3], [4, 5]]
    loader = Loader(Numbers(6), with_noise, batch_size=3, seed=0, groups=groups)
    seen = [next(loader)["id"] for _ in range(40)]
    assert all({0 if i < 3 else 1 if i == 3 else 2 for i in ids} == {0, 1, 2} for ids in seen)
    assert set(np.concatenate(seen)) == set(range(6))


def test_errors():
    with pytest.raises(UserError, match="batch_size=6 is not a multiple of the 4 processes"):
        take(1, process_count=4)
    with pytest.raises(UserError, match="source is empty"):
        Loader(Numbers(0), with_noise, batch_size=1, seed=0)


class Annotations(Source):
    """Examples whose images must not be read."""

    def __init__(self, examples):
        self.examples = list(examples)

    def __len__(self):
        return len(self.examples)

    def annotation(self, index):
        return self.examples[index]

    def __getitem__(self, index):
        raise AssertionError("an image was decoded")


def test_rows_are_grouped_by_the_values_of_fields():
    names, toned = "abab", (False, False, True, False)
    source = Annotations(
        {"name": name, "toned": tone, "captions": [name, "x"]}
        for name, tone in zip(names, toned, strict=True)
    )
    assert group_rows((), source) is None
    assert group_rows(("name",), source) == [[0, 2], [1, 3]]
    assert group_rows(("name", "toned"), source) == [[0], [1, 3], [2]]
    assert group_rows(("captions",), source) == [[0, 2], [1, 3]]
    with pytest.raises(UserError, match=r"config.data.group_by, 'tone'; did you mean 'toned'"):
        group_rows(("tone",), source)
