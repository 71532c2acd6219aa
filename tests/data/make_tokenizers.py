"""Writes `tokenizers_clip.json`: captions and the ids that open_clip's SimpleTokenizer gives them.

    pip install -e ".[parity]"
    python tests/data/make_tokenizers.py

The same captions, more of them, are compared live by `test_tokenizers_parity.py`.
"""

# ruff: noqa: RUF001, SIM905 (characters that look like others are the point; lists in few lines)

import json
import pathlib
import random
import sys
import unicodedata
from collections.abc import Iterator

SAMPLE = pathlib.Path(__file__).with_name("tokenizers_clip.json")

WORDS = """a photo of the large brown dog running on beach at sunset in front an old house with red
roof vintage poster design T-Shirt women's dress size XXL free shipping New York City 2019 iPhone
wallpaper HD stock vector illustration background watercolor hand-drawn logo template PowerPoint
kitchen interior modern wooden table chairs close-up portrait smiling man holding baby jekyll
antidisestablishmentarianism B&W 35mm f/1.8 #throwback @user http://example.com/a_b?c=d&e=f
""".split()
CONTRACTIONS = "it's we're I've I'm you'll he'd can't IT'S 'S ''ve o'clock".split()
ACCENTS = (
    "café cafe\u0301 forêt Ångström A\u030angstro\u0308m naïve Größe İstanbul ΟΔΟΣ Σίσυφος".split()
)
ACCENTS += "ПРИВЕТ мир ﬁnancial ﬅone 'ſ ǅ ＦＵＬＬ\u3000ｗｉｄｔｈ ｶﾞ Åé \u0345²".split(" ")
SCRIPTS = "一只猫坐在桌子上 東京タワー 서울 हिन्दी नमस्ते مرحبا שלום ภาษาไทย ქართული 𠜎𠜱".split()
EMOJI = "🌅 👩\u200d💻 👍🏽 🇫🇷 1️⃣ ❤️ 🏴\U000e0067\U000e0062\U000e007f ☺ ™ ©".split()
ENTITIES = "&amp; &amp;amp; &#39;s &#x27; &nbsp; &lt;b&gt; <b> &hearts; &copy &#128512;".split()
ENTITIES += "&#xD800; &#0; &#28; &bogus; &amp;lt;p&amp;gt; &EACUTE; AT&T & ;".split()
MOJIBAKE = "donâ€™t|sÃ³|voilÃ le|âœ” ok|Ã¢â‚¬Å“|\x93hi\x94|РџСЂРёРІРµС‚|Â£5|\ufffd".split("|")
CONTROLS = "\x00|\x07|\x1b[31mred\x1b[0m|\x1c|\x7f|\x85|\x9f|\ufeff|\u200b|\u202e".split("|")
SURROGATES = ["\ud83d\ude00", "\ud800", "\udfff"]
SPACES = "\t|\n|\r\n|\u3000|\xa0|\u2028|   |\v|\f|\u1680".split("|")
QUOTES = "“curly”|‘single’|it’s|— dash|…|«»|!!!|?!|...|::)|$9.99|50%".split("|")
NUMBERS = "0 1999 3.14 ½ Ⅻ ٣ 1,000,000 10th ٢٠٢٠ ①".split()
SPECIAL = "<|endoftext|> <|startoftext|> <start_of_text> <end_of_text> <END_OF_TEXT>".split()
SPECIAL += (
    "<ſtart_of_text> !<end_of_text> <end_of_text>s <start_of_text &lt;end_of_text&gt;".split()
)
GROUPS = [CONTRACTIONS, ACCENTS, SCRIPTS, EMOJI, ENTITIES, MOJIBAKE, CONTROLS, SURROGATES, SPACES]
GROUPS += [QUOTES, NUMBERS, SPECIAL]


def captions(count: int, seed: int, *, unassigned: bool = False) -> Iterator[str]:
    """Captions of every sort: plain, long, in many scripts, broken in many ways.

    Args:
        count: how many.
        seed: of the draw.
        unassigned: whether code points may occur to which Unicode assigns no character (yet). The
            ids of such depend on the versions of Unicode in Python, regex and tokenizers.
    """
    rng = random.Random(seed)
    yield from ["", " ", "\n", *(text for group in GROUPS for text in group)][:count]
    for i in range(count - sum(map(len, GROUPS)) - 3):
        length = rng.choice([150, 300]) if i % 20 == 0 else rng.randint(1, 16)
        oddity = rng.choice([0.0, 0.1, 0.5, 1.0])
        yield rng.choice([" ", " ", " ", ""]).join(
            _odd(rng, unassigned) if rng.random() < oddity else _word(rng) for _ in range(length)
        )


def _word(rng: random.Random) -> str:
    word = rng.choice(WORDS)
    if rng.random() < 0.1:  # letters that are no word
        word = "".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(1, 12)))
    return rng.choice([word, word, word.upper(), word.capitalize(), word + rng.choice(".,;:!?'\"")])


def _odd(rng: random.Random, unassigned: bool) -> str:
    if rng.random() < 0.6:
        return rng.choice(rng.choice(GROUPS))
    return "".join(_character(rng, unassigned) for _ in range(rng.randint(1, 6)))


def _character(rng: random.Random, unassigned: bool) -> str:
    """A character of any plane; the small code points, most in use, as often as all others."""
    while True:
        top = rng.choice([0x80, 0x250, 0x3000, 0x10000, 0x110000, 0x110000])
        character = chr(rng.randrange(top))
        if unassigned or unicodedata.category(character) != "Cn":
            return character


def main() -> None:
    """Asks open_clip for the ids and writes the file."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    texts = [text for text in captions(320, seed=0) if len(text) < 400]
    rows = tokenizer(texts).tolist()
    # Padding is left out: zeros after the last id that is none.
    rows = [row[: max(i for i, token in enumerate(row) if token) + 1] for row in rows]
    # ASCII alone, since the captions hold surrogates and control characters.
    lines = [json.dumps([text, row]) for text, row in zip(texts, rows, strict=True)]
    SAMPLE.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{SAMPLE}: {len(texts)} captions, {SAMPLE.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
