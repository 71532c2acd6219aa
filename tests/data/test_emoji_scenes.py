"""Scenes of emoji: drawn from their index alone, with boxes and masks of what is visible."""

import pickle

import numpy as np
import pytest

from vit_jax.data.embedded import art, emoji, scenes
from vit_jax.data.sources import open_source
from vit_jax.data.sources.scenes import _open_emoji
from vit_jax.errors import UserError

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def plain_square(thing, rng):
    return np.dstack([np.full((64, 64, 3), COLORS[thing]), np.full((64, 64), 255)]).astype(np.uint8)


@pytest.fixture(scope="module")
def train(emoji_directory):
    return open_source("emoji_scenes:train?size=64&count=50")


def assert_equal_examples(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_equal(a[key], b[key])


@pytest.mark.parametrize("seed", range(8))
def test_masks_are_the_visible_pixels(seed):
    scene = scenes.draw(80, len(COLORS), plain_square, np.random.default_rng(seed))
    assert (scene.masks.sum(axis=0) <= 1).all()
    for thing, mask in zip(scene.things, scene.masks, strict=True):
        # Pixels at edges are mixed with what lies behind.
        exact = (scene.image == COLORS[thing]).all(axis=-1)
        assert (exact & mask).sum() >= 0.6 * mask.sum()
        assert mask.sum() > 0


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_tight(seed):
    scene = scenes.draw(80, len(COLORS), plain_square, np.random.default_rng(seed))
    for box, mask in zip(scene.boxes, scene.masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        ]  # fmt: skip


def test_a_covered_drawing_stays_visible():
    """A square whose sides are parallel to the others' would be hidden without the limit."""
    for seed in range(30):
        scene = scenes.draw(64, 3, plain_square, np.random.default_rng(seed))
        smallest = (0.18 * 64) ** 2 * 0.6 * scenes.MIN_VISIBLE  # 0.6: a part may be outside
        assert all(mask.sum() >= 0.6 * smallest for mask in scene.masks)


def test_number_and_scale_of_drawings(train, emoji_directory):
    source = open_source(
        "emoji_scenes:train?size=64&count=50&max_drawings=2&min_scale=0.4&max_scale=0.5"
    )
    found = [source[i]["boxes"] for i in range(50)]
    assert {len(boxes) for boxes in found} == {1, 2}
    sides = np.concatenate([boxes[:, 2:] - boxes[:, :2] for boxes in found])
    # A drawing fills its square almost, and may be rotated by 30 degrees.
    assert 0.35 * 64 < np.median(sides) < 0.5 * 1.37 * 64
    others = np.concatenate([train[i]["boxes"] for i in range(50)])
    assert np.median(others[:, 2:] - others[:, :2]) < 0.35 * 64


def test_a_scene_depends_on_its_index_only(emoji_directory):
    source = open_source("emoji_scenes:heldout_base?size=64&count=50")
    first = source[7]
    for index in (3, 9):
        source[index]
    assert_equal_examples(source[7], first)
    assert_equal_examples(source[-43], first)
    copy = pickle.dumps(source)
    assert len(copy) < 500  # no drawings
    _open_emoji.cache_clear()  # as in a reader process
    assert_equal_examples(pickle.loads(copy)[7], first)
    assert_equal_examples(open_source("emoji_scenes:heldout_base?size=64&count=8")[7], first)


def test_an_example_has_the_fields_of_boxes(train):
    example = train[0]
    count = len(example["names"])
    assert example["image"].shape == (64, 64, 3)
    assert example["image"].dtype == np.uint8
    assert example["boxes"].shape == (count, 4)
    assert example["boxes"].dtype == np.float32
    assert example["crowd"].tolist() == [False] * count
    assert [mask.shape for mask in example["segmentation"]] == [(64, 64)] * count
    assert set(example["names"]) <= set(train.class_names)
    assert example["vocabulary"] == train.class_names
    assert train.annotation(0)["names"] == example["names"]


def test_splits_share_neither_scenes_nor_held_out_names(train, emoji_directory):
    test = open_source("emoji_scenes:test?size=64&count=50")
    assert test.class_names == train.class_names
    assert not any(np.array_equal(test[i]["image"], train[i]["image"]) for i in range(20))
    held = open_source("emoji_scenes:heldout_names?size=64&count=50")
    base = open_source("emoji_scenes:heldout_base?size=64&count=50")
    expected = set(emoji.heldout_names())
    assert set(held.class_names) <= expected
    assert set(base.class_names) == set(held.class_names)
    assert len(held.class_names) >= len(expected) - 1  # of one, all drawings are in train
    assert not set(train.class_names) & expected


@pytest.mark.skipif(art.why_no_noto() is not None, reason="no Noto")
def test_the_held_out_artist(emoji_directory):
    source = open_source("emoji_scenes:heldout_artist?size=64&count=3")
    assert len(source[0]["names"])


def test_names_are_drawn_equally_often_and_sizes_vary(train):
    found = [train[i] for i in range(50)]
    counts = {len(example["names"]) for example in found}
    assert {1, 2, 3, 4, 5} <= counts
    assert len({name for example in found for name in example["names"]}) > 100
    sides = np.concatenate([example["boxes"][:, 2] - example["boxes"][:, 0] for example in found])
    assert sides.max() > 2 * np.percentile(sides, 10)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("emoji_scenes:tarin", "unknown split of emoji_scenes 'tarin'; did you mean 'train'"),
        ("emoji_scenes:train?size=8", "size=8, expected at least 32"),
        ("emoji_scenes:train?count=0", "count=0, expected at least one"),
        ("emoji_scenes:train?max_drawings=0", "max_drawings=0, expected at least 1"),
        ("emoji_scenes:train?min_scale=0.5", "min_scale=0.5, max_scale=0.45: expected fractions"),
        ("emoji_scenes:train?sizes=64", "did you mean 'size'"),
    ],
)
def test_wrong_specs(spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec)
