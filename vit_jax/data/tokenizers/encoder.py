"""Base class of vocabularies, and their registry."""

import abc
import dataclasses
from typing import Any, Self

from vit_jax.components import Registry
from vit_jax.data.tokenizers.layout import Layout
from vit_jax.errors import UserError

ENCODERS = Registry(
    "tokenizer",
    {
        "classes": "vit_jax.data.tokenizers.classes:ClassEncoder",
        "clip": "vit_jax.data.tokenizers.clip:ClipEncoder",
        "huggingface": "vit_jax.data.tokenizers.huggingface:HuggingFaceEncoder",
        "sentencepiece": "vit_jax.data.tokenizers.sentencepiece:SentencePieceEncoder",
        "trained": "vit_jax.data.tokenizers.trained:TrainedEncoder",
    },
)


class Encoder(abc.ABC):
    """A vocabulary, on which a `Tokenizer` is built."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec."""

    @classmethod
    @abc.abstractmethod
    def open(cls, place: str, config: Any) -> Self:
        """Opens a vocabulary by its spec.

        Args:
            place: part of the spec after the name, as a path; may be empty.
            config: options of the spec.

        Raises:
            UserError: the vocabulary cannot be read.
        """

    @abc.abstractmethod
    def size(self) -> int:
        """Smallest number of rows of an embedding table with one for every id."""

    @abc.abstractmethod
    def layout(self, vocab_size: int) -> Layout:
        """Layout of rows for an embedding table of `vocab_size` rows."""

    @abc.abstractmethod
    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without start, end and padding."""

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text; first character, and the one after the last, of each of them.

        Raises:
            UserError: the vocabulary does not report them.
        """
        raise UserError(
            f"captions need the characters of each token, which the tokenizer {self.kind!r} does "
            "not report: expected huggingface:FILE"
        )

    def decode(self, ids: list[int]) -> str:
        """Text of token ids; special tokens are included where they have a text.

        Raises:
            UserError: the vocabulary does not decode.
        """
        raise UserError(f"the tokenizer {self.kind!r} does not decode: expected huggingface:FILE")

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """The whole vocabulary and its options as JSON values, for saving and pickling."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Restores the encoder whose `state` it is."""

    @property
    def kind(self) -> str:
        """Name in specs and in saved files: that of the registry, or `package.module:Name`."""
        path = f"{type(self).__module__}:{type(self).__name__}"
        return next((name for name, known in ENCODERS.table.items() if known == path), path)
