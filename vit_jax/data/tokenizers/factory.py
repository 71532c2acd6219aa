"""Opens tokenizers by a short spec, as in configs and in the model registry.

clip                                                       CLIP
clip:?pad=49407                                            filled with the end of text
sentencepiece:/models/c4_en.model                          SigLIP
gemma:/models/gemma.model                                  SigLIP 2, also as tokenizer.json
sentencepiece:/models/t5.model?clean=none&pad=<pad>        T5
huggingface:/models/tokenizer.json?end=[SEP]&pad=[PAD]&start=[CLS]
saved:/runs/a                                              the tokenizer of another run
my_project.text:Words:/models/words.txt                    an `Encoder` of your own
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from vit_jax.components import Registry
from vit_jax.data.broken import read_all
from vit_jax.data.sources.base import Source, captions_of
from vit_jax.data.specs import Spec, parse_options, parse_spec
from vit_jax.data.tokenizers.encoder import ENCODERS, Encoder
from vit_jax.data.tokenizers.tokenizer import Tokenizer, load_encoder
from vit_jax.data.tokenizers.trained import TrainedEncoder
from vit_jax.errors import UserError, unknown

TRAINED = "trained"
"""Spec of a tokenizer that is learned from the training captions, see `learn_tokenizer`."""

GEMMA = "gemma"
"""Spec of Gemma's tokenizer as SigLIP 2 uses it, which is published in files of two kinds."""

_SAVED = "saved"
_SPECS = Registry(ENCODERS.kind, {**ENCODERS.table, _SAVED: "", GEMMA: ""})


def open_tokenizer(spec: str, *, vocab_size: int, context_length: int) -> Tokenizer:
    """Opens a tokenizer for a text tower.

    Args:
        spec: short spec, see the module's docstring.
        vocab_size: number of rows of the tower's embedding table.
        context_length: number of tokens to which texts are padded or truncated.

    Raises:
        UserError: an unknown spec or option, a file that cannot be read, a table that is too small
            for the vocabulary.
    """
    encoder = open_encoder(spec)
    return Tokenizer(encoder, vocab_size=vocab_size, context_length=context_length)


def open_encoder(spec: str) -> Encoder:
    """Opens the vocabulary of a tokenizer, without a text tower.

    Args:
        spec: short spec, see the module's docstring.

    Raises:
        UserError: an unknown spec or option, or a file that cannot be read.
    """
    parsed = parse_spec(spec, _SPECS)
    if parsed.name == TRAINED:
        raise UserError(
            "the tokenizer 'trained' is learned from captions; open a learned one as saved:DIR"
        )
    if parsed.name == _SAVED:
        if not parsed.place:
            raise UserError(f"tokenizer {spec!r}: expected saved:DIR")
        if parsed.options:
            raise unknown(next(iter(parsed.options)), (), "option of saved:")
        return load_encoder(parsed.place)
    if parsed.name == GEMMA:
        parsed = _as_siglip2(parsed)
    component = ENCODERS.resolve(parsed.name)
    return component.open(parsed.place, parse_options(component.Config, parsed))


def _as_siglip2(spec: Spec) -> Spec:
    """A `tokenizer.json` or a SentencePiece model with the rows of SigLIP 2 and its cleaning."""
    if not spec.place:
        raise UserError(f"tokenizer {GEMMA!r}: expected gemma:PATH")
    name = "huggingface" if spec.place.endswith(".json") else "sentencepiece"
    options = {"end": "<eos>", "pad": "<pad>", "clean": "canonicalize"}
    return Spec(name, spec.place, {**options, **spec.options})


def learn_tokenizer(
    source: Source,
    templates: Sequence[str],
    *,
    vocab_size: int,
    context_length: int,
    max_broken_fraction: float = 0.0,
) -> Tokenizer:
    """Learns a byte-level BPE vocabulary from the captions of a source.

    Images with boxes have the names of all classes instead (`vocabulary`), which are the texts.

    Args:
        source: training source.
        templates: prompt templates with one `{}`.
        vocab_size: number of rows of the text tower's embedding table, at least 258.
        context_length: number of tokens to which texts are padded or truncated.
        max_broken_fraction: maximum fraction of examples without a readable caption, which are
            counted, logged and left out.

    Raises:
        UserError: too many examples without captions, or a table that is too small.
    """
    captions: set[str] = set()
    for _, example in read_all(source, _read_texts, max_broken_fraction, "Reading captions"):
        captions.update(example.texts)
        if example.is_whole:
            break
    # The words of templates occur in most texts; without them they would be encoded as bytes.
    words = [template.format("") for template in templates for _ in range(len(captions) // 10)]
    encoder = TrainedEncoder.train([*captions, *words], vocab_size)
    return Tokenizer(encoder, vocab_size=vocab_size, context_length=context_length)


class _Texts(NamedTuple):
    """Texts of an example, and whether those of all examples are among them."""

    texts: list[str]
    is_whole: bool


def _read_texts(example: dict[str, Any]) -> _Texts:
    """Texts of an example; of an image with boxes, the names of all classes."""
    vocabulary = example.get("vocabulary")
    return _Texts(vocabulary, True) if vocabulary else _Texts(captions_of(example), False)
