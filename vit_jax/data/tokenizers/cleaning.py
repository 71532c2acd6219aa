"""Cleaning of texts before tokenization: the four functions of open_clip."""

import functools
import html
import re
import string
import unicodedata
from collections.abc import Callable

_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def lower(text: str) -> str:
    """Repairs the encoding, collapses white space and lower-cases, as OpenAI's CLIP."""
    return " ".join(_repair(text).split()).lower()


def canonicalize(text: str) -> str:
    """Repairs the encoding, removes ASCII punctuation, lower-cases, collapses space, as SigLIP.

    `_` becomes a space (big_vision, evaluators/proj/image_text/prompt_engineering.py).
    """
    return " ".join(_repair(text).translate(_NO_PUNCTUATION).lower().split())


def whitespace(text: str) -> str:
    """Repairs the encoding and collapses white space; case is kept."""
    return " ".join(_repair(text).split())


def none(text: str) -> str:
    """Keeps the text, except surrogates, which no encoder accepts: joins pairs, replaces others."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


CLEANINGS: dict[str, Callable[[str], str]] = {
    "lower": lower,
    "canonicalize": canonicalize,
    "whitespace": whitespace,
    "none": none,
}


def _repair(text: str) -> str:
    """Repairs encoding errors (ftfy) and resolves HTML entities, twice for doubly escaped texts."""
    # In printable ASCII, which most captions are, ftfy changes nothing except entities.
    if not (text.isascii() and text.isprintable()) or ("&" in text and ";" in text):
        text = _fix_text(text)
    return html.unescape(html.unescape(text)) if "&" in text else text


def _fix_text(text: str) -> str:
    """`ftfy.fix_text`, which is slow, called only where it changes more than quotes."""
    # Imported here, because runs with other tokenizers never need it.
    from ftfy import badness, chardata, fix_text

    straight = chardata.SINGLE_QUOTE_RE.sub("'", chardata.DOUBLE_QUOTE_RE.sub('"', text))
    if (
        _repaired_characters().search(straight)
        or not unicodedata.is_normalized("NFC", straight)
        or badness.is_bad(text)
        or (straight != text and badness.is_bad(straight))  # ftfy repeats until nothing changes
    ):
        return fix_text(text)
    return straight


@functools.cache
def _repaired_characters() -> re.Pattern[str]:
    """Characters that ftfy's steps replace, including line ends and the start of entities."""
    from ftfy import chardata

    tables = {*chardata.LIGATURES, *chardata.WIDTH_MAP, *chardata.CONTROL_CHARS}
    single = "".join(re.escape(chr(code)) for code in sorted(tables))
    return re.compile(f"[&\n\r\x80-\x9f\u2028\u2029\ud800-\udfff{single}]")
