"""Every source of images behind one interface: random access, by a short spec.

    emoji:train, emoji:heldout_names, emoji:heldout_artist   the embedded emoji
    digits:train, mnist5k:test, fashion_mnist:test           small labelled sets
    folder:DIR[?names_file=FILE]                             one sub-folder a class
    table:FILE[?image=COLUMN&caption=COLUMN,...&label=COLUMN]  .csv, .tsv, .jsonl, .parquet
    tar:PATTERN[?classes=FILE]                               WebDataset shards, as of img2dataset
    arrayrecord:PATTERN[?classes=FILE]                       what data.prepare writes
    tfds:NAME/CONFIG:SPLIT[?data_dir=DIR&image=FEATURE&...]  prepared by TFDS as ArrayRecord

A pattern has `*`, `?` and braces: /data/{00000..00099}.tar, gs://bucket/*.tar. At the end of each
can stand a part, as in TFDS: digits:train[:80%], emoji:train[100:200]. Several are joined by ` + `:

    tar:/a/*.tar + folder:/b                                 every example once an epoch
    0.7*tar:/a/*.tar + 0.3*emoji:train                       so many of each in every batch

Sources are picklable and cheap to send: a Grain worker, which is spawned, opens its own copy.
"""

import os
import re

from vit_jax.data.embedded import labelled
from vit_jax.data.sources.array_record import ArrayRecords
from vit_jax.data.sources.base import Source, Subset
from vit_jax.data.sources.embedded_sets import EmojiSource, LabelledSource
from vit_jax.data.sources.folder import ImageFolder
from vit_jax.data.sources.mixture import Mixture
from vit_jax.data.sources.table import Table
from vit_jax.data.sources.tar import TarShards
from vit_jax.data.sources.tfds import TfdsSource
from vit_jax.errors import UserError, check_name, lookup, unknown

__all__ = ["SPLITS", "ImageFolder", "Mixture", "Source", "open_source"]

SPLITS: dict[str, tuple[str, ...]] = {
    "emoji": ("train", "heldout_names", "heldout_base", "heldout_artist"),
    **dict.fromkeys(labelled.LOADERS, labelled.SPLITS),
}
"""Names of the embedded sets and of their splits."""

_OPTIONS: dict[str, tuple[str, ...]] = {
    "folder": ("names_file",),
    "table": ("image", "caption", "label"),
    "tar": ("classes",),
    "arrayrecord": ("classes",),
    "tfds": ("data_dir", "image", "caption", "label"),
}
"""Names of the sources that are read from files, and of their options."""

_SLICE = re.compile(r"(?P<whole>.*)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]", re.DOTALL)
_QUERY = re.compile(r"(?P<place>.*?)\?(?P<options>\w+=[^&]*(?:&\w+=[^&]*)*)", re.DOTALL)
_PLUS = re.compile(r"\s\+\s+(?=(?:[\d.]+\s*\*\s*)?\w+:)")
_WEIGHTED = re.compile(r"(?P<weight>\d+\.?\d*|\.\d+)\s*\*\s*(?P<spec>.+)", re.DOTALL)


def open_source(spec: str, names_file: str | os.PathLike[str] | None = None) -> Source:
    """Opens a source by its short spec (see the module's docstring).

    Args:
      spec: one source, or several with ` + ` between them.
      names_file: for a flat folder, the file of its labels, see `ImageFolder`.

    Raises:
      UserError: unknown name, split or option (the nearest valid one is named), a bad slice, no
        such files, files that cannot be understood; its kind MissingPackageError where the package
        with the data is absent.
    """
    terms = _PLUS.split(spec.strip())
    weighted = [_WEIGHTED.fullmatch(term) for term in terms]
    if not any(weighted) and len(terms) == 1:
        return _open_part(terms[0], names_file)
    if names_file is not None:
        raise UserError(f"a names file goes with one folder: source, not with {spec!r}")
    if not any(weighted):
        return Mixture([_open_part(term) for term in terms], None)
    weights, sources = [], []
    for match, term in zip(weighted, terms, strict=True):
        if match is None or float(match["weight"]) <= 0:
            raise UserError(f"{term!r} in {spec!r}: expected a weight above 0, as 0.3*{term}")
        weights.append(float(match["weight"]))
        sources.append(_open_part(match["spec"]))
    return Mixture(sources, weights)


def _open_part(spec: str, names_file: str | os.PathLike[str] | None = None) -> Source:
    match = _SLICE.fullmatch(spec)
    source = _open_whole(match["whole"] if match else spec, names_file)
    if match is None:
        return source
    return Subset(source, _resolve_slice(match["start"], match["stop"], len(source), spec))


def _open_whole(spec: str, names_file: str | os.PathLike[str] | None) -> Source:
    name, _, place = spec.partition(":")
    if names_file is not None and name != "folder":
        raise UserError(f"a names file goes with a folder: source, not with {spec!r}")
    if name not in _OPTIONS:
        splits = lookup({**SPLITS, **dict.fromkeys(_OPTIONS, ())}, name, "data set")
        if place not in splits:
            raise unknown(place, splits, f"split of {name}")
        return EmojiSource(place) if name == "emoji" else LabelledSource(name, place)
    options: dict[str, str] = {}
    if match := _QUERY.fullmatch(place):
        place = match["place"]
        options = dict(option.split("=", 1) for option in match["options"].split("&"))
    for option in options:
        check_name(option, _OPTIONS[name], f"option of {name}:")
    if not place:
        raise UserError(f"{spec!r} names no file: expected {name}:PATH")
    match name:
        case "folder":
            return ImageFolder(place, names_file or options.get("names_file"))
        case "table":
            return Table(place, **options)
        case "tar":
            return TarShards(place, **options)
        case "arrayrecord":
            return ArrayRecords(place, **options)
    set_name, colon, split = place.rpartition(":")
    if not colon:
        raise UserError(f"{spec!r} names no split: expected tfds:NAME:SPLIT")
    return TfdsSource(set_name, split, **options)


def _resolve_slice(start: str | None, stop: str | None, total: int, spec: str) -> range:
    """The index range of `[start:stop]`, each an index or a percentage, negative from the end."""

    def position(text: str | None, default: int) -> int:
        if text is None:
            return default
        number = int(text.removesuffix("%"))
        offset = round(total * number / 100) if text.endswith("%") else number
        return offset + total if text.startswith("-") else offset

    first, last = position(start, 0), position(stop, total)
    if not 0 <= first < last <= total:
        raise UserError(
            f"the slice of {spec!r} is [{first}:{last}], but the source has {total} examples: "
            "expected 0 <= start < stop <= that"
        )
    return range(first, last)
