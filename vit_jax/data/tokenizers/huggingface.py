"""Files of the library `tokenizers` (`tokenizer.json`) as a user gives them."""

import json
from typing import Any, Self

import tokenizers as hf
from etils import epath

from vit_jax.data.tokenizers.cleaning import CLEANINGS
from vit_jax.data.tokenizers.layout import Layout, token_id
from vit_jax.errors import UserError, lookup


class HuggingFaceEncoder:
    """A `tokenizer.json`, normaliser and pre-tokenizer included.

    Start, end and padding are named by the user: files differ in whether and where they declare
    them, and a guess would only show as a loss of accuracy.

    Args:
        model: content of the file.
        source: the file's name, for messages.
        end: token that closes a text.
        pad: token that fills a row.
        start: token that opens a text; none by default.
        clean: a name of `CLEANINGS`, applied before what the file itself does.
    """

    kind = "huggingface"

    def __init__(
        self,
        model: str,
        source: str,
        *,
        end: str | None = None,
        pad: str | None = None,
        start: str | None = None,
        clean: str = "none",
    ):
        self._model, self._source = load(model, source), source
        self._model.no_truncation()
        self._model.no_padding()
        self._options = {"end": end, "pad": pad, "start": start, "clean": clean}
        self._clean = lookup(CLEANINGS, clean, "cleaning")
        ids = self._model.get_vocab(with_added_tokens=True)
        if end is None or pad is None:
            added = self._model.get_added_tokens_decoder().values()
            raise UserError(
                f"{source}: say which tokens close and fill a row, as ?end=</s>&pad=<pad>; "
                f"added tokens there: {', '.join(token.content for token in added) or 'none'}"
            )
        self._size = max(ids.values()) + 1  # ids may have gaps
        self._layout = Layout(
            end=token_id(end, ids, "end", source),
            pad=token_id(pad, ids, "pad", source),
            start=None if start is None else token_id(start, ids, "start", source),
        )

    @classmethod
    def from_file(cls, path: str, **options: Any) -> Self:
        """Reads a `tokenizer.json`; options as of the class."""
        file = epath.Path(path)
        if not file.is_file():
            raise UserError(f"no tokenizer file at {path}")
        return cls(file.read_bytes().decode("utf-8", "replace"), path, **options)

    def size(self) -> int:
        """See `Encoder`."""
        return self._size

    def layout(self, vocab_size: int) -> Layout:
        """See `Encoder`."""
        del vocab_size  # ids are the file's, whatever the table
        return self._layout

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder`."""
        texts = [self._clean(text) for text in texts]
        return [e.ids for e in self._model.encode_batch_fast(texts, add_special_tokens=False)]

    def state(self) -> dict:
        """See `Encoder`. The file is part of it, so that a run outlives it."""
        return {"source": self._source, **self._options, "model": json.loads(self._model.to_str())}

    @classmethod
    def from_state(cls, state: dict) -> Self:
        """See `Encoder`."""
        options = dict(state)
        return cls(json.dumps(options.pop("model")), options.pop("source"), **options)


def load(model: str, source: str) -> hf.Tokenizer:
    """Parses a `tokenizer.json`; `source` names it in the error."""
    try:
        return hf.Tokenizer.from_str(model)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{source} is no file of Hugging Face tokenizers: {error}") from error
