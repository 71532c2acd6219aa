"""Tokenizers: layout, truncation, unseen text, saving."""

import pickle

import numpy as np
import pytest

from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError

CAPTIONS = ["red apple", "green apple", "red car", "flag: Japan", "woman running"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, vocab_size=300, context_length=6)


def test_layout(tokenizer):
    ids = tokenizer(["red apple", "apple"])
    assert ids.shape == (2, 6)
    assert ids.dtype == np.int32
    for row in ids:
        end = int(np.argmax(row))
        assert row[end] == 299
        assert (row[:end] > 0).all()
        assert (row[end + 1 :] == 0).all()
    np.testing.assert_array_equal(ids[0][1:3], ids[1][:2])  # "apple" is the same token


def test_truncation_keeps_the_end(tokenizer):
    row = tokenizer("a very long caption that does not fit")[0]
    assert row[-1] == 299
    assert (row[:-1] > 0).all()


def test_any_text_has_ids(tokenizer):
    for text in ("", "中文", "🍕 pizza", "\x00\x7f", "a" * 1000):
        row = tokenizer(text)[0]
        assert row.max() == 299


def test_case_and_normal_form_do_not_matter(tokenizer):
    np.testing.assert_array_equal(tokenizer("Red APPLE"), tokenizer("red apple"))
    np.testing.assert_array_equal(tokenizer("caf\u00e9"), tokenizer("cafe\u0301"))


def test_order_of_captions_does_not_matter(tokenizer):
    other = Tokenizer.train(reversed(CAPTIONS), vocab_size=300, context_length=6)
    np.testing.assert_array_equal(other(CAPTIONS), tokenizer(CAPTIONS))


def test_saved_and_pickled(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path, vocab_size=300, context_length=6)
    for other in (loaded, pickle.loads(pickle.dumps(tokenizer))):
        np.testing.assert_array_equal(other(CAPTIONS), tokenizer(CAPTIONS))


def test_errors(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no tokenizer at"):
        Tokenizer.load(tmp_path, vocab_size=300, context_length=6)
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match="leaves room for 258"):
        Tokenizer.load(tmp_path, vocab_size=260, context_length=6)
    with pytest.raises(UserError, match="expected at least 258"):
        Tokenizer.train(CAPTIONS, vocab_size=100, context_length=6)
