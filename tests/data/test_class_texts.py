"""Texts of classes with learned vectors of their own."""

import pickle

import jax
import numpy as np
import pytest

from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.zeroshot import ZeroShot
from vit_jax.inputs import ImageInputs
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def words():
    return open_tokenizer("clip", vocab_size=49408, context_length=8)


def test_a_row_names_the_class_before_its_words(words, tmp_path):
    tokenizer = words.with_classes(["a cat", "a dog", "a cat"])
    plain = words(["a dog", "a cat"])
    expected = np.concatenate([plain[:, :1], [[-2], [-1]], plain[:, 1:-1]], axis=1)
    tokenizer.save(tmp_path)
    saved = open_tokenizer(f"saved:{tmp_path}", vocab_size=49408, context_length=8)
    for each in (tokenizer, saved, pickle.loads(pickle.dumps(tokenizer))):
        np.testing.assert_array_equal(each(["a dog", "a cat"]), expected)
        assert each.classes == ("a cat", "a dog", "a cat")
    assert tokenizer.text_of(expected[0].tolist()) == "a dog"
    assert tokenizer.lengths(["a dog"]) == [5]
    assert tokenizer.with_classes(()).is_same(words)
    assert not tokenizer.is_same(words)
    with pytest.raises(UserError, match="made by a run with config"):
        open_tokenizer("classes", vocab_size=49408, context_length=8)


def test_other_classes_are_refused_before_images_are_read(words):
    """Zero-shot classification of ten digits, by prompts of two of them."""
    message = r"each of 2 classes .* expected '0', '1'; found '2', '3', .* '9'"
    embedder = Embedder(
        ModelDef(registry.model_spec("clip_vit_emoji").architecture),
        inputs=ImageInputs(),
        mesh=make_mesh(devices=jax.devices()[:1]),
        tokenizer=words.with_classes("01"),
        batch_size=4,
    )
    with pytest.raises(UserError, match=message):
        ZeroShot(ZeroShot.Config(data="digits:test"), embedder)
    known = ZeroShot.Config(data="digits:test[:9]", class_names="mnist", templates=("a {}",))
    with pytest.raises(UserError, match=r"found 'a 0', .* 'a 9'"):
        ZeroShot(known, embedder)
