"""Tokens of texts to rows of one length."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A row is `[start,] tokens, end, pad, pad, ...`. Truncation cuts tokens, never the end.

    Attributes:
        end: id that closes a text.
        pad: id that fills a row.
        start: id that opens a text, if any.
    """

    end: int
    pad: int
    start: int | None = None

    @property
    def marks(self) -> int:
        """Ids of a row that are no tokens of the text."""
        return 1 if self.start is None else 2

    def rows(self, tokens: Sequence[list[int]], length: int) -> np.ndarray:
        """Ids (B, length), int32, of B texts of any number of tokens."""
        first, room = self.marks - 1, length - self.marks
        ids = np.full((len(tokens), length), self.pad, np.int32)
        if self.start is not None:
            ids[:, 0] = self.start
        for row, text in zip(ids, tokens, strict=True):
            count = min(len(text), room)
            row[first : first + count] = text[:room]
            row[first + count] = self.end
        return ids


class Encoder(Protocol):
    """A vocabulary: what a `Tokenizer` is built on. One class a kind.

    Attributes:
        kind: name in specs and in saved files.
    """

    kind: str

    def size(self) -> int:
        """Smallest table of a text tower that has a row for every id."""

    def layout(self, vocab_size: int) -> Layout:
        """How rows are laid out for a table of that size."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without start, end and padding."""

    def state(self) -> dict:
        """Everything there is to save, as JSON."""

    @classmethod
    def from_state(cls, state: dict) -> Self:
        """The encoder that `state` came from."""


def token_id(name: str, ids: dict[str, int], what: str, source: str) -> int:
    """The id of a token that a user named.

    Args:
        name: the token's text.
        ids: ids of the vocabulary.
        what: the option that names it.
        source: the file that the vocabulary is from.
    """
    if name not in ids:
        special = [token for token in ids if token[:1] + token[-1:] in ("<>", "[]")][:12]
        raise UserError(
            f"{what}={name}: no such token in {source}; special tokens there: "
            f"{', '.join(special) or 'none'}"
        )
    return ids[name]
