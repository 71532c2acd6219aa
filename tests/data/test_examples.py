"""Transforms from examples to the fields of a batch."""

import numpy as np
import pytest

from vit_jax.data.augment import parse_augmentation
from vit_jax.data.batches import abstract_batch, batch_transform
from vit_jax.data.detection import DetectionConfig
from vit_jax.data.examples import OtherTokens, captions_of, check_classes, example_transform
from vit_jax.data.sources import open_source
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

INPUTS = ImageInputs(size=(4, 6))
AUGMENT = parse_augmentation("affine|flip", INPUTS)
EXAMPLE = {
    "image": np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8),
    "label": 3,
    "captions": ["a cat", "an animal"],
    "key": "shard/7",
}


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("clip", vocab_size=49408, context_length=12)


def test_fields_have_the_types_and_shapes_of_a_batch(tokenizer):
    transform = example_transform(("image", "label", "tokens"), AUGMENT, tokenizer)
    found = transform(EXAMPLE, np.random.default_rng(0))
    shapes = {name: (value.shape, value.dtype) for name, value in found.items()}
    assert shapes == {
        "image": ((4 * 6 * 3,), np.uint8),
        "label": ((), np.int32),
        "tokens": ((12,), np.int32),
    }
    assert found["label"] == 3


@pytest.mark.parametrize("fields", [("image",), ("image", "label"), ("label",)])
def test_only_the_given_fields_are_read(fields):
    example = {name: EXAMPLE[name] for name in fields}
    assert set(example_transform(fields, AUGMENT)(example, np.random.default_rng(0))) == set(fields)


def test_captions_and_templates_are_drawn(tokenizer):
    templates = ("{}", "a photo of {}")
    transform = example_transform(("tokens",), AUGMENT, tokenizer, templates)
    rng = np.random.default_rng(0)
    found = {transform(EXAMPLE, rng)["tokens"].tobytes() for _ in range(50)}
    texts = [template.format(text) for template in templates for text in EXAMPLE["captions"]]
    assert found == {row.tobytes() for row in tokenizer(texts)}


def test_several_captions_are_drawn_without_replacement(tokenizer):
    """Those of an image with fewer captions come equally often; each has its own template."""
    example = {**EXAMPLE, "captions": ["a cat", "an animal", "a pet"]}
    texts = {row.tobytes(): text for text, row in zip(
        example["captions"], tokenizer(example["captions"]), strict=True)}  # fmt: skip

    def drawn(count, rng):
        transform = example_transform(("captions",), AUGMENT, tokenizer, captions_per_image=count)
        rows = transform(example, rng)["captions"]
        assert rows.shape == (count, 12)
        return [texts[row.tobytes()] for row in rows]

    rng = np.random.default_rng(0)
    pairs = {tuple(drawn(2, rng)) for _ in range(50)}
    assert len(pairs) == 6
    assert all(a != b for a, b in pairs)
    for _ in range(5):
        five = drawn(5, rng)
        assert sorted(five.count(text) for text in example["captions"]) == [1, 2, 2]
    transform = example_transform(("captions",), AUGMENT, tokenizer, ("{}", "my {}"), 40)
    assert len(np.unique(transform(example, rng)["captions"], axis=0)) == 6


def test_the_drawn_text_is_tokenized_for_other_models_too(tokenizer):
    others = {
        "longer": OtherTokens(20, open_tokenizer("clip", vocab_size=49408, context_length=20))
    }
    fields, templates = ("tokens", "longer"), ("{}", "a photo of {}")
    transform = example_transform(fields, AUGMENT, tokenizer, templates, other_tokens=others)
    alone = example_transform(("tokens",), AUGMENT, tokenizer, templates)
    planned = abstract_batch(fields, 1, INPUTS, 12, DetectionConfig(), other_tokens=others)
    drawn = set()
    for seed in range(9):
        found = transform(EXAMPLE, np.random.default_rng(seed))
        expected = alone(EXAMPLE, np.random.default_rng(seed))["tokens"]
        np.testing.assert_array_equal(found["tokens"], expected)
        text = tokenizer.text_of(expected.tolist())
        assert others["longer"].tokenizer.text_of(found["longer"].tolist()) == text
        drawn.add(text)
    assert len(drawn) > 1
    assert {name: x.shape for name, x in planned.items()} == {"tokens": (1, 12), "longer": (1, 20)}
    assert (found["longer"].shape, found["longer"].dtype) == ((20,), np.int32)


def test_captions_per_image_apply_to_captions(tokenizer):
    source = open_source("digits:train")
    keys = {"tokenizer": tokenizer}
    with pytest.raises(UserError, match="captions_per_image=2 applies to the objective 'contrast"):
        batch_transform(("image", "tokens"), source, "", INPUTS, captions_per_image=2, **keys)
    with pytest.raises(UserError, match="captions_per_image=0: expected 1 or more"):
        batch_transform(("image", "captions"), source, "", INPUTS, captions_per_image=0, **keys)


def test_captions_are_drawn_before_the_augmentation(tokenizer):
    """The order of draws is part of a run's reproducibility."""
    transform = example_transform(("image", "tokens"), AUGMENT, tokenizer, ("{}", "a {}"))
    found = transform(EXAMPLE, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    caption = EXAMPLE["captions"][int(rng.integers(2))]
    template = ("{}", "a {}")[int(rng.integers(2))]
    np.testing.assert_array_equal(found["tokens"], tokenizer(template.format(caption))[0])
    np.testing.assert_array_equal(found["image"], AUGMENT(EXAMPLE["image"], rng).reshape(-1))


def test_class_names_are_captions_where_there_are_none():
    assert captions_of({"name": "cat"}) == ["cat"]
    assert captions_of({"name": "cat", "captions": ["a cat"]}) == ["a cat"]
    with pytest.raises(UserError, match="no captions and no name among the fields"):
        captions_of({"label": 1})


def test_errors(tokenizer):
    with pytest.raises(UserError, match="unknown field of a batch, 'labels'; did you mean 'label'"):
        example_transform(("labels",), AUGMENT)
    with pytest.raises(UserError, match="reads tokens, but the model has no tokenizer"):
        example_transform(("tokens",), AUGMENT)
    with pytest.raises(UserError, match="templates is empty"):
        example_transform(("tokens",), AUGMENT, tokenizer, ())
    read_label = example_transform(("label",), AUGMENT)
    with pytest.raises(UserError, match="shard/7 has no label"):
        read_label({"key": "shard/7"}, np.random.default_rng(0))


def test_number_of_classes_is_checked():
    digits = open_source("digits:test")
    check_classes(digits, 10, "data")
    with pytest.raises(UserError, match=r"data has 10 classes, config.model.num_classes is 3: set"):
        check_classes(digits, 3, "data")
    digits.class_names = None
    with pytest.raises(UserError, match="data has no labels"):
        check_classes(digits, 10, "data")
