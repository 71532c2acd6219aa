"""Text to token ids (B, context_length), int32.

Layout of every sequence: tokens, end of text (EOT), zero padding. EOT has the largest id, so that
a text tower finds it with argmax; truncation keeps it.
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import tokenizers as hf

from vit_jax.errors import UserError

FILE_NAME = "tokenizer.json"  # in a workdir, beside the checkpoints


class Tokenizer:
    """A Hugging Face tokenizer with fixed special ids and a fixed length.

    Ids: 0 is padding, `vocab_size - 1` is EOT, the tokenizer's own ids are shifted by one.
    """

    def __init__(self, model: hf.Tokenizer, *, vocab_size: int, context_length: int):
        if model.get_vocab_size() + 2 > vocab_size:
            raise UserError(
                f"the tokenizer has {model.get_vocab_size()} tokens, the text tower's "
                f"vocab_size={vocab_size} leaves room for {vocab_size - 2}"
            )
        self.vocab_size, self.context_length = vocab_size, context_length
        self._model = model

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Token ids (B, context_length), int32."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = np.zeros((len(texts), self.context_length), np.int32)
        for row, encoding in zip(ids, self._model.encode_batch_fast(texts), strict=True):
            tokens = encoding.ids[: self.context_length - 1]
            row[: len(tokens)] = np.asarray(tokens, np.int32) + 1
            row[len(tokens)] = self.vocab_size - 1
        return ids

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes `tokenizer.json` into a directory."""
        self._model.save(str(pathlib.Path(directory) / FILE_NAME))

    @classmethod
    def load(cls, directory: str | pathlib.Path, *, vocab_size: int, context_length: int) -> Self:
        """Reads `tokenizer.json` from a directory."""
        path = pathlib.Path(directory) / FILE_NAME
        if not path.is_file():
            raise UserError(f"no tokenizer at {path}")
        return cls(
            hf.Tokenizer.from_file(str(path)), vocab_size=vocab_size, context_length=context_length
        )

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int, context_length: int) -> Self:
        """Learns byte-level BPE (Radford et al. 2019, section 2.2) from captions, lower-cased.

        Any text has ids, seen or not: the 256 bytes are always in the vocabulary.

        Args:
            captions: training texts; order does not matter.
            vocab_size: size of the text tower's table, at least 258. The tokenizer may need less.
            context_length: tokens a text is padded or cut to.
        """
        alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < len(alphabet) + 2:
            raise UserError(f"vocab_size={vocab_size}: expected at least {len(alphabet) + 2}")
        model = hf.Tokenizer(hf.models.BPE())
        model.normalizer = hf.normalizers.Sequence(
            [hf.normalizers.NFC(), hf.normalizers.Lowercase()]
        )
        model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = hf.trainers.BpeTrainer(
            vocab_size=vocab_size - 2, initial_alphabet=alphabet, show_progress=False
        )
        # Sorted, because ties between equally frequent merges fall by order of appearance.
        model.train_from_iterator(sorted(captions), trainer)
        return cls(model, vocab_size=vocab_size, context_length=context_length)

    def __reduce__(self) -> tuple:
        # Reader processes are spawned and get the tokenizer by pickle.
        return _restore, (self._model.to_str(), self.vocab_size, self.context_length)


def _restore(model: str, vocab_size: int, context_length: int) -> Tokenizer:
    return Tokenizer(
        hf.Tokenizer.from_str(model), vocab_size=vocab_size, context_length=context_length
    )
