"""Sources of images with captions or labels, opened by a short spec.

    emoji:train, emoji:heldout_names, emoji:heldout_artist   the sample emoji
    emoji_scenes:train[?size=PX&count=N]                     scenes of emoji with boxes and masks
    digits:train, mnist5k:test, fashion_mnist:test           small labelled samples
    folder:DIR[?names_file=FILE]                             one sub-folder per class
    images:DIR                                               images alone, of all folders below
    pairs:DIR[?captions=file_name]                           images with .txt files, or their names
    table:FILE[?image=COLUMN&caption=COLUMN,...&label=COLUMN]  .csv, .tsv, .jsonl, .parquet
    tar:PATTERN[?classes=FILE]                               WebDataset shards, as of img2dataset
    arrayrecord:PATTERN[?classes=FILE]                       written by data.prepare
    tfds:NAME/CONFIG:SPLIT[?data_dir=DIR&image=FEATURE&...]  prepared by TFDS, without TensorFlow
    hf:DIR_OR_NAME[?config=NAME&split=NAME&image=COLUMN&...]  of Hugging Face, on disk or in a cache
    coco:FILE.json[?images=DIR]                              boxes of COCO, LVIS or your own data
    grounding:FILE.jsonl[?images=DIR]                        captions, and boxes of their phrases
    semantic:DIR?labels=DIR&classes=FILE                     images, and label maps as PNG
    referring:FILE.jsonl[?images=DIR&masks=DIR]              phrases, and the mask of each
    package.module:Name:PLACE[?option=value&...]             a `Source` of your own

A pattern has `*`, `?` and braces: /data/{00000..00099}.tar, gs://bucket/*.tar. A slice may follow,
as in TFDS: digits:train[:80%], emoji:train[100:200]; folder:DIR[::10] is every tenth example, and
folder:DIR[!::10] all others. Several sources are joined by ` + `:

    tar:/a/*.tar + folder:/b                                 every example once per epoch
    0.7*tar:/a/*.tar + 0.3*emoji:train                       these fractions of every batch

Sources are picklable: a Grain worker, which is spawned, opens its own copy.
"""

import re
from collections.abc import Sequence

import numpy as np

from vit_jax.components import Registry
from vit_jax.data.sources.base import Source, Subset, captions_of
from vit_jax.data.sources.mixture import Mixture
from vit_jax.data.specs import parse_options, parse_spec
from vit_jax.errors import UserError, printable

__all__ = ["SOURCES", "Mixture", "Source", "captions_of", "open_source"]

SOURCES = Registry(
    "data source",
    {
        "emoji": "vit_jax.data.sources.samples:EmojiSource",
        "emoji_scenes": "vit_jax.data.sources.scenes:EmojiScenes",
        "digits": "vit_jax.data.sources.samples:Digits",
        "mnist5k": "vit_jax.data.sources.samples:Mnist5k",
        "fashion_mnist": "vit_jax.data.sources.samples:FashionMnist",
        "folder": "vit_jax.data.sources.folder:ImageFolder",
        "images": "vit_jax.data.sources.images:Images",
        "pairs": "vit_jax.data.sources.pairs:ImagePairs",
        "table": "vit_jax.data.sources.table:Table",
        "tar": "vit_jax.data.sources.tar:TarShards",
        "arrayrecord": "vit_jax.data.sources.array_record:ArrayRecords",
        "tfds": "vit_jax.data.sources.tfds:TfdsSource",
        "hf": "vit_jax.data.sources.hugging_face:HuggingFace",
        "coco": "vit_jax.data.sources.coco:Coco",
        "grounding": "vit_jax.data.sources.grounding:Grounding",
        "semantic": "vit_jax.data.sources.semantic:Semantic",
        "referring": "vit_jax.data.sources.referring:Referring",
    },
)

_SLICE = re.compile(
    r"(?P<whole>.*)\[(?P<others>!)?(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?(?::(?P<step>[1-9]\d*))?\]",
    re.DOTALL,
)
_PLUS = re.compile(r"\s\+\s+(?=(?:[\d.]+\s*\*\s*)?[\w.]+:)")
_WEIGHTED = re.compile(r"(?P<weight>\d+\.?\d*|\.\d+)\s*\*\s*(?P<spec>.+)", re.DOTALL)


def open_source(spec: str) -> Source:
    """Opens a source by its short spec.

    Args:
        spec: one source, or several joined as `A + B`, see the module's docstring.

    Raises:
        UserError: an unknown name, split or option, a slice out of range, files that are absent or
            damaged.
        MissingPackageError: the package that contains the data is not installed.

    Example:
        >>> source = open_source("digits:test[:10]")
        >>> len(source), source[0]["image"].shape
        (10, (8, 8, 3))
    """
    try:
        return _open_joined(spec)
    except UserError as error:  # names of files may not be printable
        raise type(error)(printable(str(error))) from error


def _open_joined(spec: str) -> Source:
    terms = _PLUS.split(spec.strip())
    weighted = [_WEIGHTED.fullmatch(term) for term in terms]
    if not any(weighted):
        parts = [_open_part(term) for term in terms]
        return parts[0] if len(parts) == 1 else Mixture(parts, None)
    weights, sources = [], []
    for match, term in zip(weighted, terms, strict=True):
        if match is None or float(match["weight"]) <= 0:
            raise UserError(f"{term!r} in {spec!r}: expected a weight above 0, as 0.3*{term}")
        weights.append(float(match["weight"]))
        sources.append(_open_part(match["spec"]))
    return Mixture(sources, weights)


def _open_part(spec: str) -> Source:
    match = _SLICE.fullmatch(spec)
    source = _open_part(match["whole"]) if match else _open_whole(spec)
    if match is None:
        return source
    return Subset(source, _resolve_slice(match, len(source), spec))


def _open_whole(spec: str) -> Source:
    parsed = parse_spec(spec, SOURCES)
    component = SOURCES.resolve(parsed.name)
    return component(parse_options(component.Config, parsed), parsed.place)


def _resolve_slice(match: re.Match[str], total: int, spec: str) -> Sequence[int]:
    """The indices of `[start:stop:step]`: numbers or percentages, negative ones from the end."""

    def position(text: str | None, default: int) -> int:
        if text is None:
            return default
        number = int(text.removesuffix("%"))
        offset = round(total * number / 100) if text.endswith("%") else number
        return offset + total if text.startswith("-") else offset

    first, last = position(match["start"], 0), position(match["stop"], total)
    if not 0 <= first < last <= total:
        raise UserError(
            f"the slice of {spec!r} is [{first}:{last}], but the source has {total} examples: "
            f"expected 0 <= start < stop <= {total}"
        )
    rows = range(first, last, int(match["step"] or 1))
    if not match["others"]:
        return rows
    others = np.setdiff1d(np.arange(total), rows)
    if not len(others):
        raise UserError(f"{spec!r} has no examples: the slice is the whole source")
    return others.tolist()
