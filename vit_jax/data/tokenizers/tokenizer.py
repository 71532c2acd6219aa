"""Text to rows of token ids for a text tower."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from vit_jax.atomic_files import write_text
from vit_jax.data.tokenizers.classes import ClassEncoder
from vit_jax.data.tokenizers.encoder import ENCODERS, Encoder
from vit_jax.data.tokenizers.layout import Layout
from vit_jax.errors import UserError
from vit_jax.paths import StrPath, as_path

FILE_NAME = "tokenizer.json"  # in a workdir, beside the checkpoints


class Tokenizer:
    """A vocabulary, laid out in rows of one length for a text tower.

    Every row is `[start,] tokens, end, padding`; truncation keeps the end.
    """

    def __init__(self, encoder: Encoder, *, vocab_size: int, context_length: int) -> None:
        """Checks that the vocabulary fits the tower.

        Args:
            encoder: the vocabulary.
            vocab_size: number of rows of the tower's embedding table.
            context_length: number of tokens to which texts are padded or truncated.

        Raises:
            UserError: the table or the row is too small.
        """
        layout = encoder.layout(vocab_size)
        if encoder.size() > vocab_size:
            raise UserError(
                f"the text tower's vocab_size={vocab_size} is too small for the {encoder.kind} "
                f"tokenizer: expected at least {encoder.size()}"
            )
        if context_length <= layout.marks:
            raise UserError(
                f"context_length={context_length}: expected at least {layout.marks + 1}, because "
                f"start and end take {layout.marks} of a row"
            )
        self.vocab_size, self.context_length = vocab_size, context_length
        self._encoder, self._layout = encoder, layout

    @property
    def kind(self) -> str:
        """Name of the vocabulary's kind, as "clip"."""
        return self._encoder.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """Texts of classes with learned vectors of their own, the only texts that have rows."""
        return self._encoder.texts if isinstance(self._encoder, ClassEncoder) else ()

    def with_classes(self, texts: Sequence[str]) -> "Tokenizer":
        """The tokenizer of texts of classes, see `ClassEncoder`.

        Args:
            texts: text of each class, in the order of the labels; none for the tokenizer of words.
        """
        words = self._encoder.words if isinstance(self._encoder, ClassEncoder) else self._encoder
        encoder = ClassEncoder(words, texts) if texts else words
        return Tokenizer(encoder, vocab_size=self.vocab_size, context_length=self.context_length)

    @property
    def end_is_largest(self) -> bool:
        """Whether the end of a text is the largest id, as text towers with `pool="eot"` assume."""
        return self._layout.end >= self._encoder.size() - 1

    @property
    def layout(self) -> Layout:
        """Ids that open, close and fill a row."""
        return self._layout

    def __call__(self, texts: str | Sequence[str]) -> Int32[np.ndarray, "batch length"]:
        """Tokenizes texts.

        Args:
            texts: one text or several; any Unicode text is accepted, also an empty one.

        Returns:
            Token ids, (B, context_length).
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self._layout.rows(self._encoder.encode(texts), self.context_length)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Counts the tokens of texts, start and end included, before truncation.

        Args:
            texts: texts.
        """
        return [len(ids) + self._layout.marks for ids in self._encoder.encode(list(texts))]

    def with_spans(
        self, text: str
    ) -> tuple[Int32[np.ndarray, " length"], Int32[np.ndarray, "length 2"]]:
        """Tokenizes a text and finds the characters of each token.

        Args:
            text: text.

        Returns:
            Token ids, `self(text)[0]`, and the first character, and the one after the last, of each
            of them; 0 and 0 for start, end and padding.

        Raises:
            UserError: the vocabulary does not report characters.
        """
        ids, spans = self._encoder.encode_with_spans(text)
        spans = spans[: self.context_length - self._layout.marks]
        row, first = np.zeros((self.context_length, 2), np.int32), self._layout.marks - 1
        row[first : first + len(spans)] = np.asarray(spans, np.int32).reshape(-1, 2)
        return self._layout.rows([ids], self.context_length)[0], row

    def decode(self, ids: Sequence[int]) -> str:
        """Converts token ids to text; special tokens are included where they have a text.

        Args:
            ids: token ids.

        Raises:
            UserError: the vocabulary does not decode.
        """
        return self._encoder.decode([int(i) for i in ids])

    def text_of(self, row: Sequence[int]) -> str:
        """Converts a row to its text, without the ids that open, close and fill it.

        Args:
            row: token ids; those from the first end of text on are left out.

        Raises:
            UserError: the vocabulary does not decode.
        """
        before = itertools.takewhile(lambda i: i != self._layout.end, map(int, row))
        return self.decode([i for i in before if i not in (self._layout.start, self._layout.pad)])

    def is_same(self, other: "Tokenizer") -> bool:
        """Returns whether another tokenizer has the same rows for all texts.

        Args:
            other: tokenizer.
        """
        if (self.context_length, self.layout) != (other.context_length, other.layout):
            return False
        return _to_json(self._encoder) == _to_json(other._encoder)

    def save(self, directory: StrPath) -> None:
        """Writes `tokenizer.json`, the kind and the whole vocabulary, into a directory."""
        write_text(as_path(directory) / FILE_NAME, _to_json(self._encoder))

    def __reduce__(self) -> tuple:
        """Pickles the vocabulary's state: reader processes are spawned."""
        return _restore, (_to_json(self._encoder), self.vocab_size, self.context_length)


def check_layout(tokenizer: Tokenizer, architecture: Any, title: str) -> None:
    """Refuses a tokenizer with another layout of texts than the model reads.

    Args:
        tokenizer: tokenizer of the model.
        architecture: dataclass of an architecture with a text tower.
        title: name of the tokenizer, for the message.

    Raises:
        UserError: the tower pools the largest id, which is not the end of text, or has another id
            for it; its learned prompt does not follow the start of text; or a decoder of captions
            would learn the padding.
    """
    text = architecture.text
    end = getattr(text, "end_id", None)
    if getattr(text, "class_position", "end") != "end" and end not in (None, tokenizer.layout.end):
        raise UserError(
            f"config.model.text.end_id={end}: {title} closes texts with {tokenizer.layout.end}"
        )
    if getattr(text, "pool", None) == "eot" and not tokenizer.end_is_largest:
        raise UserError(
            f"{title}: its end of text is not the largest id, which config.model.text.pool='eot' "
            "looks for; use pool='last' with this tokenizer"
        )
    first = tokenizer.layout.marks - 1
    if getattr(text, "prompt_length", 0) and text.prompt_after != first:
        raise UserError(
            f"config.model.text.prompt_after={text.prompt_after}: {title} opens texts with "
            f"{first} tokens, expected {first}"
        )
    expected = getattr(getattr(architecture, "decoder", None), "pad_id", None)
    if expected not in (None, tokenizer.layout.pad):
        raise UserError(
            f"{title} fills captions with the id {tokenizer.layout.pad}, the decoder leaves out "
            f"pad_id={expected}: name the token, as ?pad=<pad>, or set config.model.decoder.pad_id"
        )


def load_encoder(directory: StrPath) -> Encoder:
    """Reads the vocabulary that a `Tokenizer` saved in a directory.

    Raises:
        UserError: no such file, or a damaged one.
    """
    path = as_path(directory) / FILE_NAME
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
        raise UserError(f"{source} is not a saved tokenizer: {error}") from error
    if not isinstance(state, dict):
        raise UserError(f"{source} is not a saved tokenizer: expected an object with a kind")
    if "kind" not in state and "model" in state:
        # Early runs saved the bare file of the library; "trained" was the only kind.
        state = {"kind": "trained", "model": state}
    kind = str(state.pop("kind", None))
    encoder = ENCODERS.resolve(kind, source)
    try:
        return encoder.from_state(state)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} is not a saved {kind} tokenizer: {error}") from error
