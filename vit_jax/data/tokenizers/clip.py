"""OpenAI's CLIP tokenizer: the same ids, from the Rust library `tokenizers`.

Radford et al. 2021, section 2.4: byte-pair encoding of lower-cased text, 49152 tokens. The ids
equal those of open_clip's `SimpleTokenizer` with its default cleaning.
"""

import dataclasses
import functools
import gzip
import importlib.resources
from collections.abc import Mapping
from itertools import chain
from typing import Any, Self

import tokenizers as hf

from vit_jax.data.tokenizers import cleaning
from vit_jax.data.tokenizers.encoder import Encoder
from vit_jax.data.tokenizers.layout import Layout
from vit_jax.errors import UserError

VOCAB_SIZE = 49408
# A caption that contains one of these as text gets its id, as in the original.
SPECIAL = {"<start_of_text>": 49406, "<end_of_text>": 49407}

# The original matches without regard to case. After lower-casing, this affects two characters: the
# long s (U+017F) matches s, and the combining iota (U+0345), a mark whose upper case is a letter,
# matches no class and is dropped.
_PIECES = (
    r"<[s\x{17F}]tart_of_text>|<end_of_text>|'[s\x{17F}]|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"
)


class ClipEncoder(Encoder):
    """Byte-pair encoding with OpenAI's merges."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            pad: id that fills a row: 0, or 49407, the end of text, for Stable Diffusion 1.x.
        """

        pad: int = 0

    def __init__(self, config: Config | None = None) -> None:
        """Loads the merges.

        Args:
            config: options of the spec; None for the defaults.

        Raises:
            UserError: an id that is not in the vocabulary.
        """
        self._config = config or self.Config()
        if not 0 <= self._config.pad < VOCAB_SIZE:
            raise UserError(
                f"pad={self._config.pad}: expected an id below {VOCAB_SIZE}, as 0 or 49407"
            )
        self._words = _Words(_model())

    @classmethod
    def open(cls, place: str, config: Config) -> Self:
        """See `Encoder`."""
        if place:
            raise UserError(f"tokenizer 'clip:{place}': expected clip, or clip:?pad=ID")
        return cls(config)

    def size(self) -> int:
        """See `Encoder`."""
        return VOCAB_SIZE

    def layout(self, vocab_size: int) -> Layout:
        """See `Encoder`."""
        del vocab_size  # the ids are OpenAI's
        start, end = SPECIAL["<start_of_text>"], SPECIAL["<end_of_text>"]
        return Layout(start=start, end=end, pad=self._config.pad)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder`."""
        # No piece of the pattern contains white space, so words can be encoded one by one.
        ids = self._words.__getitem__
        return [[*chain.from_iterable(map(ids, cleaning.lower(text).split()))] for text in texts]

    def decode(self, ids: list[int]) -> str:
        """See `Encoder`. Special tokens have no text; a space follows each word."""
        tokens = (_model().id_to_token(i) for i in ids)
        # "\u0120" is the letter of the byte of a space.
        words = [token.replace("</w>", "\u0120") for token in tokens if token is not None]
        return hf.decoders.ByteLevel().decode(words).strip()

    def state(self) -> dict[str, Any]:
        """See `Encoder`."""
        return dataclasses.asdict(self._config)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """See `Encoder`."""
        return cls(cls.Config(**state))


def has_clip_ids(vocabulary: Mapping[str, int]) -> bool:
    """Returns whether a vocabulary is OpenAI's.

    Args:
        vocabulary: ids by token; the names of the start and the end of a text do not matter.
    """
    if len(vocabulary) != VOCAB_SIZE:
        return False
    words = {word: i for word, i in vocabulary.items() if i < VOCAB_SIZE - len(SPECIAL)}
    return words == _model().get_vocab()


class _Words(dict[str, list[int]]):
    """A cache from words to ids; a look-up takes a tenth of the time of encoding."""

    # These limits keep it below about 20 MB; longer words rarely repeat.
    MAX_WORDS, MAX_LETTERS = 1 << 16, 32

    def __init__(self, model: hf.Tokenizer) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, word: str) -> list[int]:
        if "_of_text>" in word:
            ids = self._with_specials(word)
        else:
            ids = self._model.encode(word, add_special_tokens=False).ids
        if len(word) <= self.MAX_LETTERS:
            if len(self) >= self.MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def _with_specials(self, word: str) -> list[int]:
        # The library would match special tokens anywhere; the original matches them only at the
        # start of a piece, so that "!<end_of_text>" contains no end of text.
        ids = []
        for piece, _ in self._model.pre_tokenizer.pre_tokenize_str(word):
            if piece in SPECIAL:
                ids.append(SPECIAL[piece])
            else:
                ids.extend(token.id for token in self._model.model.tokenize(piece))
        return ids


@functools.cache
def _model() -> hf.Tokenizer:
    file = importlib.resources.files("vit_jax.data.tokenizers") / "clip_merges.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    letters = _byte_letters()
    words = [
        *letters,
        *(f"{x}</w>" for x in letters),
        *(first + second for first, second in merges),
    ]
    vocab = {word: i for i, word in enumerate(words)}
    model = hf.Tokenizer(hf.models.BPE(vocab, merges, end_of_word_suffix="</w>"))
    model.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [
            hf.pre_tokenizers.Split(hf.Regex(_PIECES), "removed", invert=True),
            hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return model


def _byte_letters() -> list[str]:
    """One letter for each of the 256 bytes, in the order of OpenAI's ids.

    Bytes that are printable in Latin-1 come first, as themselves. The others follow, as letters
    from U+0100.
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printing)
    return [chr(code) for code in (*printing, *range(0x100, 0x100 + others))]
