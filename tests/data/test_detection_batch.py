"""From examples with boxes to a batch of detection."""

import collections
import logging
import pickle

import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.data.augment import parse_box_augmentation
from vit_jax.data.batches import abstract_batch, batch_transform
from vit_jax.data.broken import LEFT_OUT
from vit_jax.data.detection import FIELDS, DetectionConfig, detection_transform
from vit_jax.data.loader import Loader
from vit_jax.data.sources import Mixture, Source, open_source
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

INPUTS = ImageInputs(size=(30, 40), resize="squash")
VOCABULARY = ["cat", "dog", "fire_truck", "traffic_light", "tree"]
BOXES = np.array([[10, 20, 30, 40], [0, 0, 80, 60], [40, 0, 80, 30]], np.float32)


def example(**fields):
    return {
        "image": np.full((60, 80, 3), 128, np.uint8),
        "key": "x.jpg",
        "boxes": BOXES,
        "names": ["dog", "fire_truck", "dog"],
        "crowd": np.array([False, False, False]),
        "vocabulary": VOCABULARY,
        **fields,
    }


class Listed(Source):
    """Examples of a list; None is a broken one."""

    def __init__(self, examples):
        self._examples = examples

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        if self._examples[index] is None:
            raise UserError("broken")
        return self._examples[index]


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("clip", vocab_size=49408, context_length=8)


def transform_of(tokenizer, *examples, augment="", templates=("{}",), **config):
    return detection_transform(
        Listed(list(examples)),
        parse_box_augmentation(augment, INPUTS),
        tokenizer,
        templates,
        DetectionConfig(**config),
    )


def read(tokenizer, found, **config):
    """Batch of an example, and the names that it is asked for."""
    transform = transform_of(tokenizer, found, **config)
    batch = transform(found, np.random.default_rng(0))
    known = {row.tobytes(): name for name, row in zip(WORDS, tokenizer(WORDS), strict=True)}
    asked = [known[row.tobytes()] for row in batch["tokens"] if row.any()]
    return batch, asked


WORDS = [name.replace("_", " ") for name in VOCABULARY] + ["house"]


# --- fields ---------------------------------------------------------------------------------------


def test_fields_have_the_shapes_that_a_plan_assumes(tokenizer):
    sizes = DetectionConfig(max_boxes=4, max_queries=7)
    transform = transform_of(tokenizer, example(), max_boxes=4, max_queries=7)
    batch = transform(example(), np.random.default_rng(0))
    batch.pop(LEFT_OUT)
    expected = abstract_batch(FIELDS, 1, INPUTS, tokenizer.context_length, sizes)
    found = {name: ((1, *value.shape), value.dtype) for name, value in batch.items()}
    assert found == {name: (value.shape, value.dtype) for name, value in expected.items()}


def test_boxes_are_relative_to_the_input_and_padded(tokenizer):
    batch, asked = read(tokenizer, example(), max_boxes=5, max_queries=6)
    np.testing.assert_allclose(
        batch["boxes"],
        [[0.25, 0.5, 0.25, 1 / 3], [0.5, 0.5, 1, 1], [0.75, 0.25, 0.5, 0.5], [0] * 4, [0] * 4],
        rtol=1e-6,
    )
    assert batch["labels"].tolist() == [0, 1, 0, -1, -1]
    assert asked[:2] == ["dog", "fire truck"]


def test_boxes_as_proposals_with_a_caption(tokenizer):
    """The number of names does not matter, and no names are asked."""
    fields, sizes = ("image", "boxes", "caption"), DetectionConfig(max_boxes=4, max_queries=1)
    captions = ["two dogs", "a fire truck"]
    source = Listed([example(captions=captions)])
    transform = batch_transform(fields, source, "flip", INPUTS, tokenizer=tokenizer,
                                detection=sizes, templates=("see {}",))  # fmt: skip
    seen = set()
    for seed in range(8):
        batch = transform(source[0], np.random.default_rng(seed))
        assert batch.pop(LEFT_OUT).total() == 0
        assert (batch["boxes"][:, 2] > 0).tolist() == [True, True, True, False]
        seen.add(batch["caption"].tobytes())
    assert seen == {row.tobytes() for row in tokenizer([f"see {text}" for text in captions])}
    expected = abstract_batch(fields, 1, INPUTS, tokenizer.context_length, sizes)
    assert {k: (1, *x.shape) for k, x in batch.items()} == {k: x.shape for k, x in expected.items()}
    with pytest.raises(UserError, match=r"a caption belongs to one image: expected .* without mos"):
        batch_transform(fields, source, "mosaic", INPUTS, tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"x\.jpg has no captions"):
        transform(example(), np.random.default_rng(0))


def test_boxes_of_a_padded_input_are_relative_to_the_square(tokenizer):
    inputs = ImageInputs(size=(32, 32), resize="corner", interpolation="bilinear")
    transform = batch_transform(FIELDS, Listed([example()]), "", inputs, tokenizer=tokenizer)
    boxes = transform(example(), np.random.default_rng(0))["boxes"]
    np.testing.assert_allclose(boxes[0], [0.25, 30 / 80, 0.25, 0.25])


def test_positives_come_first_and_the_rest_is_padding(tokenizer):
    batch, asked = read(tokenizer, example(), max_queries=9)
    assert asked[:2] == ["dog", "fire truck"]
    assert set(asked[2:]) == {"cat", "traffic light", "tree"}
    assert len(asked) == len(set(asked))
    assert not batch["tokens"][5:].any()


def test_an_example_without_boxes(tokenizer):
    empty = example(boxes=BOXES[:0], names=[], crowd=np.zeros(0, bool))
    batch, asked = read(tokenizer, empty, max_boxes=3)
    assert not batch["boxes"].any()
    assert batch["labels"].tolist() == [-1] * 3
    assert set(asked) == set(WORDS[:5])


def test_an_example_without_vocabulary_is_asked_for_its_names_only(tokenizer):
    alone = example()
    del alone["vocabulary"], alone["crowd"]
    assert read(tokenizer, alone)[1] == ["dog", "fire truck"]


# --- negatives ------------------------------------------------------------------------------------


def test_verified_negatives_come_before_others(tokenizer):
    lvis = example(negatives=["house", "tree"], not_exhaustive=["cat"])
    for seed in range(5):
        transform = transform_of(tokenizer, lvis, max_queries=5)
        batch = transform(lvis, np.random.default_rng(seed))
        known = [row.tobytes() for row in tokenizer(WORDS)]
        asked = [WORDS[known.index(row.tobytes())] for row in batch["tokens"]]
        assert set(asked[2:4]) == {"house", "tree"}
        assert asked[4] == "traffic light"  # neither cat, of which some have no box, nor a positive


def test_the_number_of_negatives(tokenizer):
    assert len(read(tokenizer, example(), negatives=1)[1]) == 3
    assert len(read(tokenizer, example(), negatives=0)[1]) == 2
    assert len(read(tokenizer, example(), negatives=3, max_queries=4)[1]) == 4


def test_negatives_are_drawn_at_random(tokenizer):
    transform = transform_of(tokenizer, example(), negatives=1)
    rng = np.random.default_rng(0)
    found = {transform(example(), rng)["tokens"][2].tobytes() for _ in range(40)}
    assert len(found) == 3


def test_names_of_crowds_and_of_boxes_that_were_cut_off_are_no_negatives(tokenizer):
    shown = example(names=["dog", "cat", "tree"], crowd=np.array([False, True, False]))
    batch, asked = read(tokenizer, shown)
    assert set(asked[2:]) == {"fire truck", "traffic light"}
    assert batch["labels"][:3].tolist() == [0, 1, -1]
    cut = transform_of(tokenizer, shown, augment="random_crop((0.05, 0.1), min_visible=1.0)")
    dropped = cut(shown, np.random.default_rng(0))
    known = [row.tobytes() for row in tokenizer(WORDS)]
    asked = {WORDS[known.index(row.tobytes())] for row in dropped["tokens"] if row.any()}
    assert dropped["labels"].max() == -1
    assert asked == {"fire truck", "traffic light"}


def test_two_equal_names_are_one_query(tokenizer):
    """Also where data sets differ in their underscores."""
    twice = example(vocabulary=["fire truck", "tree", "tree"])
    assert read(tokenizer, twice)[1] == ["dog", "fire truck", "tree"]


# --- limits ---------------------------------------------------------------------------------------


def test_of_300_boxes_a_random_part_is_taken_and_the_rest_is_counted(tokenizer):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (300, 2))
    boxes = np.hstack([corner, corner + rng.uniform(1, 20, (300, 2))]).astype(np.float32)
    many = example(boxes=boxes, names=["dog"] * 300, crowd=np.zeros(300, bool))
    transform = transform_of(tokenizer, many)
    first, second = (transform(many, np.random.default_rng(seed)) for seed in (0, 1))
    assert (first["labels"] == 0).all()
    assert first["boxes"].shape == (100, 4)
    assert not np.array_equal(first["boxes"], second["boxes"])
    assert first[LEFT_OUT]["more than max_boxes"] == 200


def test_more_names_than_queries(tokenizer):
    batch, asked = read(tokenizer, example(names=["dog", "cat", "tree"]), max_queries=2)
    assert len(asked) == 2
    assert sorted(batch["labels"].tolist())[-2:] == [0, 1]
    assert batch[LEFT_OUT]["names beyond max_queries"] == 1


def test_left_out_boxes_are_counted_and_said(tokenizer, caplog):
    crowds = example(crowd=np.array([True, False, False]))
    source = Listed([crowds] * 8)
    transform = transform_of(tokenizer, crowds, max_boxes=1)
    loader = Loader(source, transform, batch_size=4, seed=0)
    with caplog.at_level(logging.WARNING):
        batch = next(loader)
        next(loader)
    assert set(batch) == set(FIELDS)
    assert loader.left_out.counts == collections.Counter({"crowds": 8, "more than max_boxes": 8})
    assert "Boxes left out of the first 4 examples: 4 (crowds), 4 (more than max_boxes)" in (
        caplog.text
    )
    assert caplog.text.count("Boxes left out") == 1  # at most once per minute


def test_a_name_longer_than_the_context_is_cut(tokenizer):
    long = example(names=["a very " + "long " * 20 + "name", "cat", "cat"])
    row = transform_of(tokenizer, long)(long, np.random.default_rng(0))["tokens"][0]
    assert row[0] == 49406
    assert row[-1] == 49407


def test_one_template_is_drawn_per_example(tokenizer):
    transform = transform_of(tokenizer, example(), templates=("{}", "a photo of a {}"))
    rng = np.random.default_rng(0)
    found = {transform(example(), rng)["tokens"][:2].tobytes() for _ in range(30)}
    expected = {tokenizer(["dog", "fire truck"]).tobytes()}
    expected |= {tokenizer(["a photo of a dog", "a photo of a fire truck"]).tobytes()}
    assert found == expected


# --- mosaics --------------------------------------------------------------------------------------


def test_a_mosaic_has_the_boxes_and_names_of_all_its_images(tokenizer):
    tree = example(names=["tree"], boxes=BOXES[:1], crowd=np.zeros(1, bool))
    transform = transform_of(tokenizer, tree, augment="mosaic((0, 1))")
    batch = transform(example(), np.random.default_rng(0))
    assert (batch["labels"] >= 0).sum() == 3 + 3
    assert batch["labels"].max() == 2
    np.testing.assert_allclose(batch["boxes"][0], [0.125, 0.25, 0.125, 1 / 6], rtol=1e-5)


def test_broken_images_of_a_mosaic_are_passed_over(tokenizer):
    transform = transform_of(tokenizer, None, example(), None, augment="mosaic((0, 1))")
    batch = transform(example(), np.random.default_rng(0))
    assert (batch["labels"] >= 0).sum() == 12
    only_broken = transform_of(tokenizer, None, None, augment="mosaic((0, 1))")
    with pytest.raises(UserError, match="100 examples in a row cannot be read, the last: broken"):
        only_broken(example(), np.random.default_rng(0))


def test_a_mosaic_of_two_sources_asks_for_names_that_both_have(tokenizer):
    other = example(vocabulary=["tree", "house", "dog"], names=["dog"] * 3)
    transform = transform_of(tokenizer, other, augment="mosaic((0, 1))", max_queries=20)
    batch = transform(example(), np.random.default_rng(0))
    known = [row.tobytes() for row in tokenizer(WORDS)]
    asked = [WORDS[known.index(row.tobytes())] for row in batch["tokens"] if row.any()]
    assert asked == ["dog", "fire truck", "tree"]


def test_rows_of_weighted_mixtures_are_drawn_by_weight():
    mixture = Mixture([Listed([example()] * 3), Listed([example()] * 100)], [0.9, 0.1])
    rng = np.random.default_rng(0)
    rows = [mixture.draw_row(rng) for _ in range(500)]
    assert np.mean(np.array(rows) < 3) == pytest.approx(0.9, abs=0.05)
    assert max(rows) < 103
    assert {Mixture([Listed([example()] * 3)], None).draw_row(rng) for _ in range(40)} == {0, 1, 2}


def test_batches_are_the_same_in_any_process(emoji_directory, tokenizer):
    """Mosaics draw other images with the generator of the position."""
    source = open_source("emoji_scenes:heldout_base?size=32&count=20")
    transform = batch_transform(
        FIELDS, source, "flip|random_crop|mosaic", INPUTS, tokenizer=tokenizer
    )
    whole = next(Loader(source, transform, batch_size=8, seed=3))
    copy = pickle.loads(pickle.dumps((source, transform)))  # as a reader process has it
    parts = [
        next(Loader(*copy, batch_size=8, seed=3, process_index=i, process_count=2))
        for i in range(2)
    ]
    for key in FIELDS:
        np.testing.assert_array_equal(np.concatenate([each[key] for each in parts]), whole[key])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ["dog"]}, r"boxes of shape \(3, 4\) and list of length 1 as names"),
        ({"names": [1, 2, 3]}, "expected .n, 4. and n texts"),
        ({"boxes": BOXES[:, :3]}, r"boxes of shape \(3, 3\)"),
    ],
)
def test_boxes_that_do_not_fit_their_names(tokenizer, fields, message):
    with pytest.raises(UserError, match=message):
        transform_of(tokenizer, example(**fields))


def test_a_source_without_boxes_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"x\.jpg has no boxes and names among the fields \['key"):
        transform_of(tokenizer, {"image": None, "key": "x.jpg"})


def test_a_model_without_text_is_refused():
    with pytest.raises(UserError, match="the model has no tokenizer"):
        transform_of(None, example())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_boxes", 0, "config.data.detection.max_boxes=0: expected at least 1"),
        ("negatives", -1, "config.data.detection.negatives=-1: expected at least 0"),
        ("max_queries", 1.5, "config.data.detection.max_queries=1.5: expected int"),
    ],
)
def test_sizes_out_of_range(key, value, message):
    config = config_lib.default_config("clip_vit_b32")
    with config.ignore_type():
        config.data.detection[key] = value
    with pytest.raises(UserError, match=message):
        config_lib.detection(config)


def test_sizes_of_detection_need_an_objective_with_boxes():
    fields, source = ("image", "label"), Listed([example(label=0)])
    batch_transform(fields, source, "", INPUTS, tokenizer=None, detection=DetectionConfig())
    changed = DetectionConfig(max_boxes=7)
    with pytest.raises(UserError, match=r"applies to objectives that read boxes, .* image, label"):
        batch_transform(fields, source, "", INPUTS, tokenizer=None, detection=changed)
