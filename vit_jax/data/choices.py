"""Choices for data that nobody has looked at yet: source, held-out part, sizes, tokenizer.

For the recipes that take a path: `clip_your_pairs`, `vit_your_folder` and `dino_your_images`. Every
choice is logged with its reason.
"""

import dataclasses
import logging
import math
import os
import shlex
from collections.abc import Callable, Container

import numpy as np

from vit_jax.data.images import EncodedImage, read_image
from vit_jax.data.inspection import spread
from vit_jax.data.sources import (
    SOURCES,
    Source,
    captions_of,
    hugging_face_files,
    listing,
    open_source,
)
from vit_jax.data.sources.folder import is_image
from vit_jax.data.tokenizers.trained import TrainedEncoder
from vit_jax.errors import UserError
from vit_jax.paths import as_path, is_url

logger = logging.getLogger(__name__)

_HELD_OUT = ("validation", "valid", "val", "test")  # names of splits, the first one is taken
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_SHARDS = {".tar": "tar", ".array_record": "arrayrecord"}
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of Hugging Face's ImageFolder
_HF = ("dataset_dict.json", "state.json", "dataset_info.json", "snapshots", "data")
_SAMPLED_IMAGES, _SAMPLED_CAPTIONS = 200, 20_000
_STEPS = 3000  # length of training on few examples
_MIN_VOCABULARY, _MAX_VOCABULARY = 512, 8192
_MAX_CONTEXT = 77


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of an image encoder.

    Attributes:
        image_size: side of the input, px.
        patch_size: side of a patch, px.
        width: number of features.
        depth: number of blocks.
        num_heads: attention heads.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int

    def fields(self) -> dict[str, int]:
        """Keys of a vision transformer."""
        return {**dataclasses.asdict(self), "mlp_dim": 4 * self.width}


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and held-out source.

    Attributes:
        train: spec of the training source.
        held_out: spec of the source for evaluation; "" for none.
        source: the opened training source.
    """

    train: str
    held_out: str
    source: Source

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for a source without classes."""
        return len(self.source.class_names or ())

    def schedule(self) -> tuple[int, float]:
        """Chooses the batch size, and the length of training in epochs."""
        count = len(self.source)
        batch = 2 ** int(np.clip(math.log2(max(1, count / 8)), 3, 8))
        epochs = float(np.clip(round(_STEPS * batch / count), 5, 100))
        logger.info("Batch size %d, %g epochs of %d examples.", batch, epochs, count)
        return batch, epochs

    def sizes(self) -> Sizes:
        """Chooses the sizes of the image encoder by the number and sizes of the images.

        Raises:
            UserError: none of the sampled images can be read.
        """
        side, count = _median_side(self.source), len(self.source)
        few = count < 20_000
        largest = 64 if few else 128 if count < 200_000 else 224
        size = max(32, *(size for size in (64, 128, 224) if size <= min(largest, side)), 0)
        patch = 16 if size == 224 else size // 8
        width, depth, heads = (
            (128, 6, 2) if few else (384, 12, 6) if count < 10**6 else (768, 12, 12)
        )
        logger.info(
            "Images of %d px, patches of %d px, %d blocks of width %d: the median shorter side is "
            "%d px, and %d examples are %s.",
            size, patch, depth, width, side, count, "few" if few else "many",
        )  # fmt: skip
        return Sizes(size, patch, width, depth, heads)

    def vocabulary(self) -> tuple[int, int]:
        """Chooses the size of a learned vocabulary, and the tokens per caption.

        Raises:
            UserError: no example has a caption.
        """
        rows = spread(len(self.source), _SAMPLED_CAPTIONS)
        captions = []
        for row in rows:
            try:
                captions += captions_of(self.source.annotation(row))
            except UserError:
                continue
        if not captions:
            raise UserError(f"{self.train}: none of {len(rows)} examples has a caption")
        limit = int(np.clip(len(captions) / 4, _MIN_VOCABULARY, _MAX_VOCABULARY))
        encoder = TrainedEncoder.train(captions, limit)
        longest = math.ceil(np.percentile([len(ids) for ids in encoder.encode(captions)], 99)) + 1
        size, context = -(-encoder.size() // 64) * 64, min(_MAX_CONTEXT, -(-longest // 8) * 8)
        logger.info(
            "Tokenizer learned from the captions: up to %d tokens, %d per caption, which 99%% of "
            "%d captions need at most (%d); as %r.",
            size, context, len(captions), longest, captions[0],
        )  # fmt: skip
        return size, context


def find_pairs(place: str) -> Data:
    """Finds images with captions.

    Args:
        place: path of a table, of a folder, or the spec of a source.

    Raises:
        UserError: nothing of a known kind is there.
    """
    return _find(place, _pairs, "clip_your_pairs")


def find_folder(place: str) -> Data:
    """Finds images with classes, see `find_pairs`.

    Raises:
        UserError: nothing of a known kind is there, or it has no classes.
    """
    found = _find(place, lambda folder: f"folder:{folder}", "vit_your_folder")
    names = found.source.class_names
    if names is None:
        raise UserError(f"{found.train} has no classes: expected a folder of each, or labels")
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    logger.info("%d classes: %s.", len(names), shown)
    return found


def find_images(place: str) -> Data:
    """Finds images, with classes or without, see `find_pairs`. Classes are for evaluation alone.

    Raises:
        UserError: nothing of a known kind is there.
    """
    found = _find(place, _images, "dino_your_images", only_classes=True)
    if found.held_out:
        logger.info(
            "%d folders or labels are taken for classes, which evaluation alone reads.",
            found.num_classes,
        )
    return found


def _find(
    place: str, of_images: Callable[[str], str], recipe: str, only_classes: bool = False
) -> Data:
    """Finds a source, and holds a tenth of it out, with `only_classes` if it has classes."""
    if not place:
        raise UserError(
            f"the recipe needs your data: --config configs/{recipe}.py:PATH, where PATH is a "
            "table, a folder or the spec of a source"
        )
    whole, held_out = _split(place, of_images)
    train, reason = whole, "the split is there"
    if not held_out:
        train, held_out = f"{whole}[!::10]", f"{whole}[::10]"
        reason = "every tenth example is held out"
    source = open_source(train)
    if only_classes and source.class_names is None:
        held_out, reason = "", "there are no classes"
        if train != whole:
            train, source = whole, open_source(whole)
    logger.info(
        "Training on %s (%d examples), evaluation on %s: %s. Check the data with: vit-jax inspect "
        "%s",
        train, len(source), held_out or "nothing", reason, shlex.quote(train),
    )  # fmt: skip
    return Data(train, held_out, source)


def _split(place: str, of_images: Callable[[str], str]) -> tuple[str, str]:
    """Training source, and the source of a split for evaluation; "" where there is none."""
    if place.partition(":")[0] in SOURCES.table:
        return place, ""
    path = as_path(place)
    if not path.exists():
        raise UserError(f"no file or folder {place}")
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if _is_hugging_face(names) and not is_url(place):
        splits = hugging_face_files.splits(place)
        held_out = _first(splits)
        if "train" in splits and held_out:
            return f"hf:{place}?split=train", f"hf:{place}?split={held_out}"
        # Several splits without a train split are an error that asks for one.
        return (f"hf:{place}?split=train" if "train" in splits else f"hf:{place}"), ""
    if "train" in names and (held_out := _first(names)):
        return of_images(os.path.join(place, "train")), of_images(os.path.join(place, held_out))
    return _of_path(place, names, of_images), ""


def _of_path(place: str, names: list[str], of_images: Callable[[str], str]) -> str:
    """Spec of a table, of shards, or of a folder of images."""
    if not names:
        if not place.lower().endswith(_TABLES):
            raise UserError(f"{place}: expected a folder, or a table {', '.join(_TABLES)}")
        return f"table:{place}"
    for suffix, source in _SHARDS.items():
        if any(name.endswith(suffix) for name in names):
            return f"{source}:{place}/*{suffix}"
    return of_images(place)


def _pairs(folder: str) -> str:
    """Spec of a folder of images with captions."""
    for name in _METADATA:
        if (as_path(folder) / name).exists():
            return f"table:{folder}/{name}"
    paths, _, _ = listing.find(*listing.open_folder(folder))
    texts = {path.removesuffix(".txt") for path in paths if path.endswith(".txt")}
    images = [path for path in paths if is_image(path)]
    if any(os.path.splitext(image)[0] in texts for image in images):
        return f"pairs:{folder}"
    logger.info(
        "No image of %s has a text beside it: captions are the words of file names.", folder
    )
    return f"pairs:{folder}?captions=file_name"


def _images(folder: str) -> str:
    """Spec of a folder of images, of one sub-folder per class if all images are in sub-folders."""
    fs, root = listing.open_folder(folder)
    paths, folders, _ = listing.find(fs, root)
    loose = any(is_image(path) and "/" not in listing.inside_of(root, path) for path in paths)
    return f"images:{folder}" if loose or len(folders) < 2 else f"folder:{folder}"


def _is_hugging_face(names: list[str]) -> bool:
    return any(name in names for name in _HF) or any(name.endswith(".parquet") for name in names)


def _first(names: Container[str]) -> str:
    """The first name of a held-out split that is there; "" for none."""
    return next((name for name in _HELD_OUT if name in names), "")


def _median_side(source: Source) -> int:
    """Median of the shorter side of the images, px."""
    sides = []
    for row in spread(len(source), _SAMPLED_IMAGES):
        try:
            image = source[row]["image"]
            shape = image.shape if isinstance(image, EncodedImage) else read_image(image).shape
            sides.append(min(shape[:2]))
        except UserError:
            continue
    if not sides:
        raise UserError("none of the sampled images can be read")
    return int(np.median(sides))
