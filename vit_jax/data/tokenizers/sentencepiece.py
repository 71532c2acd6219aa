"""SentencePiece models (Kudo and Richardson 2018) from a user's file: SigLIP, T5.

The defaults are SigLIP's as open_clip runs it (`ViT-B-16-SigLIP`: clean "canonicalize", end of
text kept by truncation, padding with the end of text, which is id 1). big_vision's training
pipeline lays rows out in the same way (`eos="sticky", pad_value=1`) but lower-cases only; it
removes punctuation in its zero-shot evaluation.
"""

import base64
from typing import Any, Self

from etils import epath

from vit_jax.data.tokenizers.cleaning import CLEANINGS
from vit_jax.data.tokenizers.layout import Layout, token_id
from vit_jax.errors import UserError, lookup


class SentencePieceEncoder:
    """A SentencePiece model.

    Args:
        model: content of the model's file.
        source: the file's name, for messages.
        clean: a name of `CLEANINGS`.
        start: token that opens a text; none by default.
        end: token that closes a text; the model's own by default.
        pad: token that fills a row; by default that which closes a text.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        source: str,
        *,
        clean: str = "canonicalize",
        start: str | None = None,
        end: str | None = None,
        pad: str | None = None,
    ):
        self._model, self._bytes, self._source = _load(model, source), model, source
        self._options = {"clean": clean, "start": start, "end": end, "pad": pad}
        self._clean = lookup(CLEANINGS, clean, "cleaning")
        if end is None and self._model.eos_id() < 0:
            raise UserError(f"{source}: the model has no end of text; name a token, as ?end=</s>")
        ids = {self._model.id_to_piece(i): i for i in range(self._model.get_piece_size())}
        end_id = self._model.eos_id() if end is None else token_id(end, ids, "end", source)
        self._layout = Layout(
            end=end_id,
            pad=end_id if pad is None else token_id(pad, ids, "pad", source),
            start=None if start is None else token_id(start, ids, "start", source),
        )

    @classmethod
    def from_file(cls, path: str, **options: Any) -> Self:
        """Reads a model file; options as of the class."""
        file = epath.Path(path)
        if not file.is_file():
            raise UserError(f"no SentencePiece model at {path}")
        return cls(file.read_bytes(), path, **options)

    def size(self) -> int:
        """See `Encoder`."""
        return self._model.get_piece_size()

    def layout(self, vocab_size: int) -> Layout:
        """See `Encoder`."""
        del vocab_size  # ids are the file's, whatever the table
        return self._layout

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder`."""
        return self._model.encode([self._clean(text) for text in texts], out_type=int)

    def state(self) -> dict:
        """See `Encoder`. The model is part of it, so that a run outlives the user's file."""
        model = base64.b64encode(self._bytes).decode("ascii")
        return {"source": self._source, **self._options, "model": model}

    @classmethod
    def from_state(cls, state: dict) -> Self:
        """See `Encoder`."""
        options = dict(state)
        return cls(base64.b64decode(options.pop("model")), options.pop("source"), **options)


def _load(model: bytes, source: str) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            f"{source} needs the package sentencepiece: pip install 'vit_jax[sentencepiece]'"
        ) from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise UserError(f"{source} is no SentencePiece model ({len(model)} bytes)") from error
    return processor
