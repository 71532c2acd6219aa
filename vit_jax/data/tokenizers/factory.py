"""From a short spec, as it stands in configs and in the model registry, to a tokenizer.

    clip
    sentencepiece:/models/c4_en.model                          SigLIP
    sentencepiece:/models/gemma.model?pad=<pad>                SigLIP 2
    sentencepiece:/models/t5.model?clean=none&pad=<pad>        T5
    huggingface:/models/tokenizer.json?end=[SEP]&pad=[PAD]&start=[CLS]
    saved:/runs/a                                              that of another run

Options after `?` are keyword arguments of the encoders.
"""

from collections.abc import Callable

from vit_jax.data.tokenizers.clip import ClipEncoder
from vit_jax.data.tokenizers.huggingface import HuggingFaceEncoder
from vit_jax.data.tokenizers.layout import Encoder
from vit_jax.data.tokenizers.sentencepiece import SentencePieceEncoder
from vit_jax.data.tokenizers.tokenizer import Tokenizer, load_encoder
from vit_jax.errors import UserError, lookup, unknown

TRAINED = "trained"  # learned by the caller, who has the captions

_FROM_FILE: dict[str, Callable[..., Encoder]] = {
    "huggingface": HuggingFaceEncoder.from_file,
    "saved": load_encoder,
    "sentencepiece": SentencePieceEncoder.from_file,
}
_SPECS = ("clip", TRAINED, *_FROM_FILE)
_OPTIONS = ("clean", "end", "pad", "start")  # of files, which say too little about themselves


def make_tokenizer(spec: str, *, vocab_size: int, context_length: int) -> Tokenizer:
    """The tokenizer of a spec, for one text tower.

    Args:
        spec: see the top of this file. "trained" is no spec for here: `Tokenizer.train` learns
            it, "saved:DIR" reads it back.
        vocab_size: rows of the text tower's table.
        context_length: tokens a text is padded or cut to.
    """
    kind, path, options = check_spec(spec)
    if kind == TRAINED:
        raise UserError(
            "tokenizer 'trained' is learned from captions; to read one that was, give saved:DIR"
        )
    encoder = _FROM_FILE[kind](path, **options) if path else ClipEncoder()
    return Tokenizer(encoder, vocab_size=vocab_size, context_length=context_length)


def check_spec(spec: str) -> tuple[str, str, dict[str, str]]:
    """The kind, path and options of a spec, without reading any file; or an error."""
    kind, _, rest = spec.partition(":")
    lookup(dict.fromkeys(_SPECS), kind, "tokenizer")
    path, _, query = rest.partition("?")
    if (kind in _FROM_FILE) != bool(path):
        expected = f"{kind}:PATH" if kind in _FROM_FILE else kind
        raise UserError(f"tokenizer {spec!r}: expected {expected}")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    for name, value in options.items():
        if name not in _OPTIONS or kind == "saved":
            raise unknown(
                name, () if kind == "saved" else _OPTIONS, f"option of tokenizer {spec!r}:"
            )
        if not value:
            raise UserError(f"tokenizer {spec!r}: expected a value, as {name}=VALUE")
    return kind, path, options
