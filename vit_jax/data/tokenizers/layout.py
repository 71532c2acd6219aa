"""Layout of the tokens of texts in rows of one length."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A row is `[start,] tokens, end, pad, pad, ...`. Truncation drops tokens, never the end.

    Attributes:
        end: id that closes a text.
        pad: id that fills a row.
        start: id that opens a text; None for no such id.
    """

    end: int
    pad: int
    start: int | None = None

    @property
    def marks(self) -> int:
        """Number of ids in a row besides tokens and padding."""
        return 1 if self.start is None else 2

    def rows(self, tokens: Sequence[list[int]], length: int) -> Int32[np.ndarray, "batch length"]:
        """Lays out the tokens of texts.

        Args:
            tokens: token ids of each text.
            length: length of a row.
        """
        first, room = self.marks - 1, length - self.marks
        ids = np.full((len(tokens), length), self.pad, np.int32)
        if self.start is not None:
            ids[:, 0] = self.start
        for row, text in zip(ids, tokens, strict=True):
            count = min(len(text), room)
            row[first : first + count] = text[:room]
            row[first + count] = self.end
        return ids


def token_id(name: str, ids: dict[str, int], option: str, source: str) -> int:
    """Looks up the id of a token.

    Args:
        name: text of the token.
        ids: ids of the vocabulary.
        option: name of the option that holds the token, for messages.
        source: file of the vocabulary, for messages.

    Raises:
        UserError: the vocabulary has no such token; the message lists its special tokens.
    """
    if name not in ids:
        special = [token for token in ids if token[:1] + token[-1:] in ("<>", "[]")][:12]
        raise UserError(
            f"{option}={name}: no such token in {source}; its special tokens: "
            f"{', '.join(special) or 'none'}"
        )
    return ids[name]
