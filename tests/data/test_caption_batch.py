"""From examples with boxes to a batch of captions, and the tokens of phrases."""

import numpy as np
import pytest

from tests.fixtures.tokenizers.wordpiece import make_wordpiece
from vit_jax.data.augment import parse_box_augmentation
from vit_jax.data.batches import abstract_batch, batch_transform
from vit_jax.data.broken import LEFT_OUT
from vit_jax.data.captions import Caption, end_phrase, join_names, split_names
from vit_jax.data.detection import DetectionConfig, detection_transform
from vit_jax.data.sources import Source
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

INPUTS = ImageInputs(size=(80, 80), resize="fit", shortest_edge=48)
FIELDS = ("image", "sizes", "tokens", "boxes", "positive_map")
LENGTH = 20
BOXES = np.array([[10, 20, 30, 40], [0, 0, 80, 60], [40, 0, 80, 30]], np.float32)
NAMED = {
    "image": np.full((60, 80, 3), 128, np.uint8),
    "key": "x.jpg",
    "boxes": BOXES,
    "names": ["cat", "fire_hydrant", "cat"],
    "vocabulary": ["cat", "dog", "fire_hydrant", "small_boat", "tree"],
}
CAPTION = "A man and two dogs play with a ball "
CAPTIONED = {
    **NAMED,
    "captions": [CAPTION],
    "names": ["man", "two dogs", "A man ball"],
    "spans": [[[2, 5]], [[10, 18]], [[0, 5], [31, 35]]],
    "crowd": np.array([True, False, False]),
}
del CAPTIONED["vocabulary"]


class Listed(Source):
    def __init__(self, examples):
        self._examples = examples

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_wordpiece().save(str(path))
    return lambda length: open_tokenizer(
        f"huggingface:{path}?start=[CLS]&end=[SEP]&pad=[PAD]",
        vocab_size=1030,
        context_length=length,
    )


@pytest.fixture(scope="module")
def tokenizer(words):
    return words(LENGTH)


def transform_of(tokenizer, *examples, augment="", templates=("{}",), **config):
    return detection_transform(
        Listed(examples),
        parse_box_augmentation(augment, INPUTS),
        tokenizer,
        templates,
        DetectionConfig(**{"max_boxes": 4, **config}),
        FIELDS,
    )


def read(tokenizer, example, seed=0, **config):
    return transform_of(tokenizer, example, **config)(example, np.random.default_rng(seed))


def phrases(tokenizer, batch):
    """Text of the tokens of each box."""
    return [tokenizer.decode(batch["tokens"][row].tolist()) for row in batch["positive_map"]]


def test_tokens_of_phrases(tokenizer):
    """Names, in a template, with separators; several pieces; beyond the context."""
    caption = join_names(["a cat", "fire.hydrant?", "Two dogs"], "the {}.")
    assert caption.text == "the a cat . the fire hydrant  . the Two dogs ."
    tokens, of_phrase = caption.tokens(tokenizer)
    found = [tokenizer.decode(tokens[row].tolist()) for row in of_phrase]
    assert found == ["a cat", "fire hydrant", "two dogs"]
    pieces = Caption("a cat and a dog", [[(2, 5), (12, 15)], [(14, 15)], [(5, 6)]])
    tokens, of_phrase = pieces.tokens(tokenizer)
    assert [tokenizer.decode(tokens[row].tolist()) for row in of_phrase] == ["cat dog", "dog", ""]
    _, of_phrase = join_names(["cat"] * 12).tokens(tokenizer)
    assert of_phrase.any(axis=1).tolist() == [True] * 9 + [False] * 3
    assert end_phrase("a cat ") == "a cat."
    assert end_phrase("a cat? ") == "a cat?"


def test_names_are_divided_by_their_tokens(words):
    names = ["cat", "man's ball", "red car", "dog", "a very very very very small dog", "tree"]
    parts, lengths = split_names(names, words(11))
    assert parts == [range(0, 2), range(2, 4), range(4, 5), range(5, 6)]
    assert lengths == [4, 7, 5, 4, 10, 4]
    for part in parts:
        (length,) = words(11).lengths([join_names([names[i] for i in part]).text])
        assert length <= 11


def test_names_and_negatives_are_one_caption(tokenizer):
    batch = read(tokenizer, NAMED)
    assert batch.keys() == {*FIELDS, LEFT_OUT}
    text = tokenizer.decode(batch["tokens"][batch["tokens"] > 0].tolist())
    asked = text.removeprefix("[CLS] ").removesuffix(" [SEP]").removesuffix(".").split(". ")
    assert sorted(asked) == ["cat", "dog", "fire hydrant", "small boat", "tree"]
    assert phrases(tokenizer, batch) == ["cat", "fire hydrant", "cat", ""]
    np.testing.assert_allclose(batch["boxes"][0], [0.25, 0.5, 0.25, 1 / 3], rtol=1e-5)
    assert batch["sizes"].tolist() == [48, 64]
    others = {read(tokenizer, NAMED, seed)["tokens"].tobytes() for seed in range(8)}
    assert len(others) > 4  # in random order


def test_the_context_has_room_for_some_names_only(words):
    """Names of boxes come first; boxes of names that do not fit are left out and counted."""
    tokenizer = words(9)
    for seed in range(5):
        batch = read(tokenizer, NAMED, seed)
        assert phrases(tokenizer, batch)[:3] == ["cat", "fire hydrant", "cat"]
        assert (batch["tokens"] == 1012).sum() == 2 + (batch["tokens"][-1] == 102)
    tokenizer = words(5)
    batch = read(tokenizer, NAMED)
    assert phrases(tokenizer, batch) == ["cat", "cat", "", ""]
    np.testing.assert_allclose(batch["boxes"][:2, 0], [0.25, 0.75], rtol=1e-5)
    assert not batch["boxes"][2:].any()
    assert batch[LEFT_OUT]["phrases beyond the context or max_queries"] == 1
    batch = read(tokenizer, NAMED, max_queries=1)
    assert batch[LEFT_OUT]["phrases beyond the context or max_queries"] >= 1


def test_a_caption_with_phrases_is_kept(tokenizer):
    """The box of a crowd is left out; a crop drops boxes with their phrases."""
    batch = read(tokenizer, CAPTIONED)
    np.testing.assert_array_equal(batch["tokens"], tokenizer(CAPTION.strip() + ".")[0])
    assert phrases(tokenizer, batch) == ["two dogs", "a man ball", "", ""]
    cut = transform_of(tokenizer, CAPTIONED, augment="random_crop((0.4, 0.8), min_visible=0.95)")
    found = [cut(CAPTIONED, np.random.default_rng(seed)) for seed in range(40)]
    kept = {tuple(filter(None, phrases(tokenizer, batch))) for batch in found}
    assert ("a man ball",) in kept
    assert ("two dogs", "a man ball") not in kept


def test_without_names_there_is_an_empty_caption(tokenizer):
    nothing = {**NAMED, "boxes": BOXES[:0], "names": [], "vocabulary": []}
    batch = read(tokenizer, nothing)
    assert batch["tokens"][:3].tolist() == [101, 102, 0]
    assert not batch["positive_map"].any()


def test_shapes_are_those_of_the_plan(tokenizer):
    sizes = DetectionConfig(max_boxes=7)
    arguments = {"tokenizer": tokenizer, "detection": sizes}
    transform = batch_transform(FIELDS, Listed([NAMED]), "flip", INPUTS, **arguments)
    batch = transform(NAMED, np.random.default_rng(0))
    for name, planned in abstract_batch(FIELDS, 3, INPUTS, LENGTH, sizes).items():
        assert (3, *batch[name].shape) == planned.shape, name
        assert batch[name].dtype == planned.dtype, name


def test_a_tokenizer_without_characters_is_refused():
    clip = open_tokenizer("clip", vocab_size=49408, context_length=8)
    with pytest.raises(UserError, match=r"the tokenizer 'clip' does not report: expected hugg"):
        transform_of(clip, NAMED)
