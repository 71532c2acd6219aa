"""Text to token ids (B, context_length), int32, whatever the vocabulary."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from etils import epath

from vit_jax.data.tokenizers.clip import ClipEncoder
from vit_jax.data.tokenizers.huggingface import HuggingFaceEncoder
from vit_jax.data.tokenizers.layout import Encoder
from vit_jax.data.tokenizers.sentencepiece import SentencePieceEncoder
from vit_jax.data.tokenizers.trained import TrainedEncoder
from vit_jax.errors import UserError, lookup

FILE_NAME = "tokenizer.json"  # in a workdir, beside the checkpoints

KINDS: dict[str, type[Encoder]] = {
    encoder.kind: encoder
    for encoder in (ClipEncoder, HuggingFaceEncoder, SentencePieceEncoder, TrainedEncoder)
}


class Tokenizer:
    """A vocabulary, laid out in rows of one length for one text tower.

    Every row is `[start,] tokens, end, padding`; truncation keeps the end.

    Args:
        encoder: the vocabulary.
        vocab_size: rows of the text tower's table.
        context_length: tokens a text is padded or cut to.
    """

    def __init__(self, encoder: Encoder, *, vocab_size: int, context_length: int):
        layout = encoder.layout(vocab_size)
        if encoder.size() > vocab_size:
            raise UserError(
                f"the text tower's vocab_size={vocab_size} is too small for the {encoder.kind} "
                f"tokenizer: expected at least {encoder.size()}"
            )
        if context_length <= layout.marks:
            raise UserError(
                f"context_length={context_length}: expected at least {layout.marks + 1}, since "
                f"{layout.marks} of a row are no tokens of the text"
            )
        self.vocab_size, self.context_length = vocab_size, context_length
        self._encoder, self._layout = encoder, layout

    @property
    def kind(self) -> str:
        """Which vocabulary: a key of `KINDS`."""
        return self._encoder.kind

    @property
    def end_is_largest(self) -> bool:
        """Whether argmax over a row finds its end, as text towers with `pool="eot"` do."""
        return self._layout.end >= self._encoder.size() - 1

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Token ids (B, context_length), int32; any text has ids, an empty one too."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self._layout.rows(self._encoder.encode(texts), self.context_length)

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes `tokenizer.json` into a directory: the kind and the whole vocabulary."""
        (epath.Path(directory) / FILE_NAME).write_text(_to_json(self._encoder))

    @classmethod
    def load(cls, directory: str | pathlib.Path, *, vocab_size: int, context_length: int) -> Self:
        """Reads `tokenizer.json` of any kind from a directory."""
        encoder = load_encoder(directory)
        return cls(encoder, vocab_size=vocab_size, context_length=context_length)

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int, context_length: int) -> Self:
        """Learns byte-level BPE from captions, lower-cased.

        Args:
            captions: training texts; order does not matter.
            vocab_size: size of the text tower's table, at least 258. The tokenizer may need less.
            context_length: tokens a text is padded or cut to.
        """
        encoder = TrainedEncoder.train(captions, vocab_size)
        return cls(encoder, vocab_size=vocab_size, context_length=context_length)

    def __reduce__(self) -> tuple:
        # Reader processes are spawned and get the tokenizer by pickle.
        return _restore, (_to_json(self._encoder), self.vocab_size, self.context_length)


def load_encoder(directory: str | pathlib.Path) -> Encoder:
    """The vocabulary that a `Tokenizer` saved in a directory."""
    path = epath.Path(directory) / FILE_NAME
    if not path.is_file():
        raise UserError(f"no tokenizer at {path}")
    return _from_json(path.read_text(), str(path))


def _restore(text: str, vocab_size: int, context_length: int) -> Tokenizer:
    encoder = _from_json(text, "the pickled tokenizer")
    return Tokenizer(encoder, vocab_size=vocab_size, context_length=context_length)


def _to_json(encoder: Encoder) -> str:
    return json.dumps({"kind": encoder.kind, **encoder.state()})


def _from_json(text: str, source: str) -> Encoder:
    try:
        state = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source} is no saved tokenizer: {error}") from error
    if not isinstance(state, dict):
        raise UserError(f"{source} is no saved tokenizer: expected an object with a kind")
    if "kind" not in state and "model" in state:
        # Runs once saved the bare file of the library; the only kind there was is "trained".
        state = {"kind": "trained", "model": state}
    encoder = lookup(KINDS, str(state.pop("kind", None)), f"kind of tokenizer in {source}:")
    try:
        return encoder.from_state(state)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} is no saved {encoder.kind} tokenizer: {error}") from error
