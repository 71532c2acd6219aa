"""What happens to a text before it is cut into tokens: the four cleanings of open_clip."""

import functools
import html
import re
import string
import unicodedata
from collections.abc import Callable

_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def lower(text: str) -> str:
    """Repaired, white space collapsed, lower-cased: OpenAI's CLIP."""
    return " ".join(_repair(text).split()).lower()


def canonicalize(text: str) -> str:
    """Repaired, without ASCII punctuation, lower-cased, white space collapsed: SigLIP.

    `_` is a space (big_vision, evaluators/proj/image_text/prompt_engineering.py).
    """
    return " ".join(_repair(text).translate(_NO_PUNCTUATION).lower().split())


def whitespace(text: str) -> str:
    """Repaired, white space collapsed; case is kept."""
    return " ".join(_repair(text).split())


def none(text: str) -> str:
    """As it is, but for surrogates, which no encoder takes: pairs are joined, others replaced."""
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
    """Mends encoding errors (ftfy) and resolves HTML entities, twice for doubly escaped texts."""
    # Nothing that ftfy mends is in printable ASCII, which most captions are, but entities.
    if not (text.isascii() and text.isprintable()) or ("&" in text and ";" in text):
        text = _fix_text(text)
    return html.unescape(html.unescape(text)) if "&" in text else text


def _fix_text(text: str) -> str:
    """`ftfy.fix_text`, which takes longer than all else, only where it does more than quotes."""
    # Imported where it is needed: runs with a vocabulary of their own never do.
    from ftfy import badness, chardata, fix_text

    straight = chardata.SINGLE_QUOTE_RE.sub("'", chardata.DOUBLE_QUOTE_RE.sub('"', text))
    if (
        _mended_characters().search(straight)
        or not unicodedata.is_normalized("NFC", straight)
        or badness.is_bad(text)
        or (straight != text and badness.is_bad(straight))  # ftfy repeats until nothing changes
    ):
        return fix_text(text)
    return straight


@functools.cache
def _mended_characters() -> re.Pattern[str]:
    """Characters on which the steps of ftfy act one by one, line ends and entities included."""
    from ftfy import chardata

    tables = {*chardata.LIGATURES, *chardata.WIDTH_MAP, *chardata.CONTROL_CHARS}
    single = "".join(re.escape(chr(code)) for code in sorted(tables))
    return re.compile(f"[&\n\r\x80-\x9f\u2028\u2029\ud800-\udfff{single}]")
