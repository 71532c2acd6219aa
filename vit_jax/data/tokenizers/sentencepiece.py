"""SentencePiece models (Kudo and Richardson 2018), as those of SigLIP and T5.

The defaults are SigLIP's in open_clip (`ViT-B-16-SigLIP`): cleaning "canonicalize", truncation that
keeps the end of text, padding with the end of text, which is id 1. big_vision's training pipeline
uses the same layout (`eos="sticky", pad_value=1`), but only lower-cases; it removes punctuation in
its zero-shot evaluation.
"""

import base64
import dataclasses
from typing import Any, Self

from vit_jax.data.tokenizers.cleaning import CLEANINGS
from vit_jax.data.tokenizers.encoder import Encoder
from vit_jax.data.tokenizers.layout import Layout, token_id
from vit_jax.errors import MissingPackageError, UserError, lookup
from vit_jax.paths import as_path


class SentencePieceEncoder(Encoder):
    """A SentencePiece model."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            clean: name of `CLEANINGS`.
            start: token that opens a text; none by default.
            end: token that closes a text; by default the model's own.
            pad: token that fills a row; by default the token that closes a text.
        """

        clean: str = "canonicalize"
        start: str | None = None
        end: str | None = None
        pad: str | None = None

    def __init__(self, config: Config, model: bytes, source: str) -> None:
        """Parses a model.

        Args:
            config: options of the spec.
            model: content of the model's file.
            source: name of the file, for messages.

        Raises:
            UserError: the content cannot be parsed, or a token is missing.
        """
        self._model, self._bytes, self._source = _load(model, source), model, source
        self._config = config
        self._clean = lookup(CLEANINGS, config.clean, "cleaning")
        end, pad, start = config.end, config.pad, config.start
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
    def open(cls, place: str, config: Config) -> Self:
        """See `Encoder`; `place` is the path of a model."""
        if not place:
            raise UserError("tokenizer 'sentencepiece': expected sentencepiece:PATH")
        file = as_path(place)
        if not file.is_file():
            raise UserError(f"no SentencePiece model at {place}")
        return cls(config, file.read_bytes(), place)

    def size(self) -> int:
        """See `Encoder`."""
        return self._model.get_piece_size()

    def layout(self, vocab_size: int) -> Layout:
        """See `Encoder`."""
        del vocab_size  # the file determines the ids
        return self._layout

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder`."""
        return self._model.encode([self._clean(text) for text in texts], out_type=int)

    def decode(self, ids: list[int]) -> str:
        """See `Encoder`. Control tokens, as the end of text, have no text."""
        return self._model.decode(ids)

    def state(self) -> dict[str, Any]:
        """See `Encoder`. The state contains the model."""
        model = base64.b64encode(self._bytes).decode("ascii")
        return {"source": self._source, **dataclasses.asdict(self._config), "model": model}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """See `Encoder`."""
        options = dict(state)
        model, source = base64.b64decode(options.pop("model")), options.pop("source")
        return cls(cls.Config(**options), model, source)


def _load(model: bytes, source: str) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingPackageError(
            f"{source} needs the package sentencepiece: pip install 'vit_jax[sentencepiece]'"
        ) from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise UserError(f"{source} is not a SentencePiece model ({len(model)} bytes)") from error
    return processor
