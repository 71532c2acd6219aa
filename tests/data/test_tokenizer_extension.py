"""A vocabulary from outside the package, and the command that learns one."""

import dataclasses
import pickle

import numpy as np

from vit_jax.data.tokenizers import (
    Encoder,
    Layout,
    open_tokenizer,
)


class Letters(Encoder):
    """A vocabulary from outside the package: one id per letter."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec."""

        first: str = "a"

    def __init__(self, first, count):
        self.first, self.count = first, count

    @classmethod
    def open(cls, place, config):
        return cls(config.first, int(place))

    def size(self):
        return self.count + 2

    def layout(self, vocab_size):
        return Layout(end=1, pad=0)

    def encode(self, texts):
        return [[ord(letter) - ord(self.first) + 2 for letter in text] for text in texts]

    def state(self):
        return {"first": self.first, "count": self.count}

    @classmethod
    def from_state(cls, state):
        return cls(**state)


def test_vocabulary_from_outside_the_package(tmp_path):
    tokenizer = open_tokenizer(f"{__name__}:Letters:4?first=c", vocab_size=6, context_length=5)
    assert tokenizer(["cf", ""]).tolist() == [[2, 5, 1, 0, 0], [1, 0, 0, 0, 0]]
    tokenizer.save(tmp_path)
    loaded = open_tokenizer(f"saved:{tmp_path}", vocab_size=6, context_length=5)
    for other in (loaded, pickle.loads(pickle.dumps(tokenizer))):
        assert other.kind == f"{__name__}:Letters"
        np.testing.assert_array_equal(other(["cf"]), tokenizer(["cf"]))
