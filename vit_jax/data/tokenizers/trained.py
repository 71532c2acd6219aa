"""Byte-level byte-pair encoding, learned from captions."""

import json
from collections.abc import Iterable
from typing import Any, Self

import tokenizers as hf

from vit_jax.data.tokenizers import cleaning
from vit_jax.data.tokenizers.encoder import Encoder
from vit_jax.data.tokenizers.huggingface import load
from vit_jax.data.tokenizers.layout import Layout
from vit_jax.errors import UserError

_MARKS = 2  # padding and end of text


class TrainedEncoder(Encoder):
    """Byte-level BPE (Radford et al. 2019, section 2.2) of lower-cased text.

    Any text has ids, because the vocabulary contains all 256 bytes. Id 0 is padding, the tower's
    last id is the end of text, and the model's own ids are shifted by one.
    """

    def __init__(self, model: hf.Tokenizer) -> None:
        """Stores a model.

        Args:
            model: tokenizer without special tokens.
        """
        self._model = model

    @classmethod
    def open(cls, place: str, config: Encoder.Config) -> Self:
        """See `Encoder`; a learned vocabulary is opened as `saved:DIR`."""
        raise UserError("the tokenizer 'trained' is learned from captions; open one as saved:DIR")

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> Self:
        """Learns at most `vocab_size - 2` tokens.

        Args:
            captions: training texts, in any order.
            vocab_size: number of rows of the text tower's embedding table, at least 258.

        Raises:
            UserError: the table is too small for the 256 bytes.
        """
        alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < len(alphabet) + _MARKS:
            raise UserError(f"vocab_size={vocab_size}: expected at least {len(alphabet) + _MARKS}")
        model = hf.Tokenizer(hf.models.BPE())
        model.normalizer = hf.normalizers.Sequence(
            [hf.normalizers.NFC(), hf.normalizers.Lowercase()]
        )
        model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = hf.trainers.BpeTrainer(
            vocab_size=vocab_size - _MARKS, initial_alphabet=alphabet, show_progress=False
        )
        # Sorted, because the order of appearance decides between equally frequent merges.
        model.train_from_iterator(sorted(cleaning.none(text) for text in captions), trainer)
        return cls(model)

    def size(self) -> int:
        """See `Encoder`."""
        return self._model.get_vocab_size() + _MARKS

    def layout(self, vocab_size: int) -> Layout:
        """See `Encoder`."""
        return Layout(end=vocab_size - 1, pad=0)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder`."""
        texts = [cleaning.none(text) for text in texts]
        return [[i + 1 for i in e.ids] for e in self._model.encode_batch_fast(texts)]

    def decode(self, ids: list[int]) -> str:
        """See `Encoder`. Padding and the end of text have no text."""
        tokens = (self._model.id_to_token(i - 1) for i in ids if i > 0)
        return hf.decoders.ByteLevel().decode([x for x in tokens if x is not None]).strip()

    def state(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {"model": json.loads(self._model.to_str())}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """See `Encoder`."""
        return cls(load(json.dumps(state["model"]), "the saved tokenizer"))
