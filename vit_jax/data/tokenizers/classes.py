"""Texts of classes that have learned vectors of their own (Zhou et al. 2022, CoOp, section 3.2)."""

from collections.abc import Sequence
from typing import Any, Self

from vit_jax.data.tokenizers.encoder import ENCODERS, Encoder
from vit_jax.data.tokenizers.layout import Layout
from vit_jax.errors import UserError


class ClassEncoder(Encoder):
    """A vocabulary whose texts are those of classes; any other text is an error.

    The first id of the text of class k is -1 - k, which a text tower with `prompt_classes` replaces
    by the vectors of this class. The ids of its words follow. Of classes with equal texts, the
    first one is named.
    """

    def __init__(self, words: Encoder, texts: Sequence[str]) -> None:
        """Stores the texts of the classes.

        Args:
            words: vocabulary of the words.
            texts: text of each class, in the order of the labels.
        """
        self.words, self.texts = words, tuple(texts)
        self._marks = {text: -1 - k for k, text in reversed([*enumerate(self.texts)])}

    @classmethod
    def open(cls, place: str, config: Encoder.Config) -> Self:
        """See `Encoder`; the texts of classes are opened as `saved:DIR`."""
        raise UserError(
            "the tokenizer 'classes' is made by a run with config.model.text.prompt_classes; open "
            "one as saved:DIR"
        )

    def size(self) -> int:
        """See `Encoder`."""
        return self.words.size()

    def layout(self, vocab_size: int) -> Layout:
        """See `Encoder`."""
        return self.words.layout(vocab_size)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder`.

        Raises:
            UserError: a text that is not that of a class.
        """
        if others := [text for text in dict.fromkeys(texts) if text not in self._marks]:
            raise UserError(
                f"each of {len(self.texts)} classes has a learned prompt of its own, and no other "
                f"text has one: expected {_listed(self.texts)}; found {_listed(others)}"
            )
        encoded = self.words.encode(texts)
        return [[self._marks[text], *ids] for text, ids in zip(texts, encoded, strict=True)]

    def decode(self, ids: list[int]) -> str:
        """See `Encoder`; the id of a class has no text."""
        return self.words.decode([i for i in ids if i >= 0])

    def state(self) -> dict[str, Any]:
        """See `Encoder`."""
        words = {"kind": self.words.kind, **self.words.state()}
        return {"texts": list(self.texts), "words": words}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """See `Encoder`."""
        words = dict(state["words"])
        encoder = ENCODERS.resolve(words.pop("kind"), "the saved texts of classes")
        return cls(encoder.from_state(words), state["texts"])


def _listed(texts: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(map(repr, texts[:shown])) + more
