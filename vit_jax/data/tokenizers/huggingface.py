"""`tokenizer.json` files of the Hugging Face library `tokenizers`."""

import dataclasses
import json
from typing import Any, Self

import tokenizers as hf

from vit_jax.data.tokenizers.cleaning import CLEANINGS
from vit_jax.data.tokenizers.encoder import Encoder
from vit_jax.data.tokenizers.layout import Layout, token_id
from vit_jax.errors import UserError, lookup
from vit_jax.paths import as_path


class HuggingFaceEncoder(Encoder):
    """A `tokenizer.json`, including its normaliser and pre-tokenizer.

    The user names the start, end and padding tokens. Files differ in whether and where they declare
    them, and a wrong guess would only show as a loss of accuracy.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            end: token that closes a text; required.
            pad: token that fills a row; required.
            start: token that opens a text; none by default.
            clean: name of `CLEANINGS`, applied before the file's own normaliser.
        """

        end: str | None = None
        pad: str | None = None
        start: str | None = None
        clean: str = "none"

    def __init__(self, config: Config, model: str, source: str) -> None:
        """Parses a file.

        Args:
            config: options of the spec.
            model: content of the file.
            source: name of the file, for messages.

        Raises:
            UserError: the content cannot be parsed, or a token is missing.
        """
        self._model, self._source, self._config = load(model, source), source, config
        self._model.no_truncation()
        self._model.no_padding()
        self._clean = lookup(CLEANINGS, config.clean, "cleaning")
        ids = self._model.get_vocab(with_added_tokens=True)
        if config.end is None or config.pad is None:
            added = self._model.get_added_tokens_decoder().values()
            raise UserError(
                f"{source}: the tokens that close and fill a row are not set, expected "
                f"?end=TOKEN&pad=TOKEN; its added tokens: "
                f"{', '.join(token.content for token in added) or 'none'}"
            )
        self._size = max(ids.values()) + 1  # ids may have gaps
        self._layout = Layout(
            end=token_id(config.end, ids, "end", source),
            pad=token_id(config.pad, ids, "pad", source),
            start=None if config.start is None else token_id(config.start, ids, "start", source),
        )

    @classmethod
    def open(cls, place: str, config: Config) -> Self:
        """See `Encoder`; `place` is the path of a `tokenizer.json`."""
        if not place:
            raise UserError("tokenizer 'huggingface': expected huggingface:PATH")
        file = as_path(place)
        if not file.is_file():
            raise UserError(f"no tokenizer file at {place}")
        return cls(config, file.read_bytes().decode("utf-8", "replace"), place)

    def size(self) -> int:
        """See `Encoder`."""
        return self._size

    def layout(self, vocab_size: int) -> Layout:
        """See `Encoder`."""
        del vocab_size  # the file determines the ids
        return self._layout

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder`."""
        texts = [self._clean(text) for text in texts]
        return [e.ids for e in self._model.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """See `Encoder`."""
        cleaned = self._clean(text)
        if len(cleaned) != len(text):
            raise UserError(
                f"the cleaning {self._config.clean!r} changes the length of {text!r}: its "
                "characters cannot be found again"
            )
        found = self._model.encode(cleaned, add_special_tokens=False)
        return found.ids, found.offsets

    def decode(self, ids: list[int]) -> str:
        """See `Encoder`."""
        return self._model.decode(ids, skip_special_tokens=False)

    def state(self) -> dict[str, Any]:
        """See `Encoder`. The state contains the file."""
        options = dataclasses.asdict(self._config)
        return {"source": self._source, **options, "model": json.loads(self._model.to_str())}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """See `Encoder`."""
        options = dict(state)
        model, source = json.dumps(options.pop("model")), options.pop("source")
        return cls(cls.Config(**options), model, source)


def load(model: str, source: str) -> hf.Tokenizer:
    """Parses a `tokenizer.json`.

    Args:
        model: content of the file.
        source: name of the file, for messages.

    Raises:
        UserError: the content cannot be parsed.
    """
    try:
        return hf.Tokenizer.from_str(model)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{source} is not a file of Hugging Face tokenizers: {error}") from error
