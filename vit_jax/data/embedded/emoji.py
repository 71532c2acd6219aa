"""The emoji image-text set: a TFDS builder without TensorFlow, built once into the user's cache.

Splits (counts are in docs/data_card_emoji.md):

- `train`: Twemoji and OpenMoji, every skin tone, of the names that are not held out;
- `heldout_names`: Twemoji and OpenMoji, every skin tone, of the 10% of names held out;
- `heldout_base`: the part of `heldout_names` without skin tones;
- `heldout_artist`: Noto, all names without tones, where the font is installed.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from vit_jax.data.cache import find_cached
from vit_jax.data.embedded import art
from vit_jax.errors import MissingPackageError, UserError

SPLITS = ("train", "heldout_names", "heldout_base", "heldout_artist")
HELDOUT_FRACTION = 0.1
IMAGE_SIZE = 64  # px, both sides
_TRAIN_ARTISTS = ("twemoji", "openmoji")


# --- names, without touching images -------------------------------------------------------------


def base_names() -> list[str]:
    """Sorted names of all emoji without skin tones; the `label` of a row is the index of its name.

    Raises:
        MissingPackageError: a data package is not installed.
    """
    return sorted({row.name for row in art.all_emoji()})


def heldout_names(names: Iterable[str] | None = None) -> list[str]:
    """Sorted names that are held out of training: the 10% with the lowest SHA-256.

    Args:
        names: all names, in any order, repeats allowed; by default `base_names()`.
    """
    unique = set(base_names() if names is None else names)
    by_hash = sorted(unique, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return sorted(by_hash[: round(HELDOUT_FRACTION * len(unique))])


# --- the builder ----------------------------------------------------------------------------------


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Drawings of emoji by several artists, with their names.

    Features of a row: `image`, (64, 64, 4) uint8 RGBA PNG; `emoji`, the code points as text; `name`
    without skin tone; `caption`, the name with its tones; `aliases`, other names; `category`;
    `artist`; `skin_tone`, "" for none; `label`, the index of `name` among all names.
    """

    VERSION = tfds.core.Version("1.2.0")
    # TFDS would look for checksum files beside the module through importlib_resources, which it
    # does not declare for Python >= 3.9. There are none, because nothing is downloaded.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage="https://openmoji.org",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(IMAGE_SIZE, IMAGE_SIZE, 4), encoding_format="png"
                    ),
                    "emoji": text,
                    "name": text,
                    "caption": text,
                    "aliases": tfds.features.Sequence(text),
                    "category": text,
                    "artist": text,
                    "skin_tone": text,
                    "label": np.int64,
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable[tuple[str, dict]]]:
        del dl_manager  # nothing is downloaded
        rows = art.all_emoji()
        toneless = [row for row in rows if not row.skin_tone]
        held = set(heldout_names())
        drawers = art.artists()
        known = {artist: drawers[artist] for artist in _TRAIN_ARTISTS}
        train = list(self._generate_examples([r for r in rows if r.name not in held], known))
        # Some artists reuse a drawing (OpenMoji's Chad is its Romania); it is not held out then.
        seen = {example["image"] for _, example in train}
        unseen = [
            (key, example)
            for key, example in self._generate_examples(
                [row for row in rows if row.name in held], known
            )
            if example["image"] not in seen
        ]
        splits: dict[str, Iterable[tuple[str, dict]]] = {
            "train": train,
            "heldout_names": unseen,
            "heldout_base": [row for row in unseen if not row[1]["skin_tone"]],
        }
        if "noto" in drawers:
            splits["heldout_artist"] = self._generate_examples(toneless, {"noto": drawers["noto"]})
        return splits

    def _generate_examples(
        self, rows: Sequence[art.Emoji], drawers: dict[str, art.Drawer]
    ) -> Iterator[tuple[str, dict]]:
        labels = {name: label for label, name in enumerate(base_names())}
        for row in rows:
            for artist, draw in drawers.items():
                image = draw(row.sequence)
                if image is None:
                    continue
                png = io.BytesIO()
                art.fit(image, IMAGE_SIZE).save(png, "PNG")
                yield (
                    f"{artist} {row.sequence}",
                    {
                        "image": png.getvalue(),
                        "emoji": row.sequence,
                        "name": row.name,
                        "caption": row.caption,
                        "aliases": list(row.aliases),
                        "category": row.category,
                        "artist": artist,
                        "skin_tone": row.skin_tone,
                        "label": labels[row.name],
                    },
                )


# --- building once, in the user's cache -----------------------------------------------------------


def build(cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Builds the data, unless the cache has it.

    The name of the folder contains the builder's version and a hash of the packages' versions, so
    that changed packages lead to a new folder. It is renamed into place once it is complete, and a
    lock makes other processes wait.

    Args:
        cache: folder to build in; by default the user's cache.

    Returns:
        The folder of the data, for `tfds.builder_from_directory`.

    Raises:
        MissingPackageError: a package is not installed.
        UserError: the cache folder cannot be written.
    """
    sources = art.source_versions(with_noto=art.why_no_noto() is None)
    digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:12]
    name = f"emoji/{Emoji.VERSION}-{digest}"
    final = (pathlib.Path(cache) / name if cache is not None else find_cached(name)).absolute()
    home = final.parent
    if final.exists():
        return final
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes
            if not final.exists():
                _build_into(final, sources)
    except OSError as error:
        raise UserError(
            f"cannot build the emoji data in {home} ({error}): set VIT_JAX_CACHE to a writable "
            "folder with 100 MB of free space"
        ) from error
    return final


def _build_into(final: pathlib.Path, sources: dict[str, str]) -> None:
    """Builds beside `final`, then renames. The caller holds the lock."""
    for abandoned in final.parent.glob("building-*"):  # by a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    logging.info("Building the emoji data in %s, which takes about 10 s.", final)
    with tempfile.TemporaryDirectory(prefix="building-", dir=final.parent) as scratch:
        builder = Emoji(data_dir=scratch, file_format="array_record")
        with _quiet_tfds():
            builder.download_and_prepare(download_dir=scratch)
        built = pathlib.Path(builder.data_dir)
        (built / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", "utf-8")
        built.rename(final)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Suppresses progress bars, and TFDS's messages on stdout, which may be a user's JSON."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def read_split(split: str, directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads all rows of a split, with the features of `Emoji` except that `image` is PNG bytes.

    Args:
        split: one of `SPLITS`.
        directory: result of `build`.

    Raises:
        MissingPackageError: the data was built without Noto, and the split is `heldout_artist`.
    """
    builder = tfds.builder_from_directory(directory)
    if split not in builder.info.splits:
        reason = art.why_no_noto() or f"the data in {directory} was built without it"
        raise MissingPackageError(
            f"split {split!r} of the emoji data needs the Noto drawings: {reason}"
        )
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [{key: _text(value) for key, value in record.items()} for record in records]


def _text(value: Any) -> Any:
    """Decodes TFDS's bytes to text, except PNG bytes."""
    if isinstance(value, bytes) and not value.startswith(b"\x89PNG"):
        return value.decode()
    if isinstance(value, np.ndarray | list) and not isinstance(value, bytes):
        return [_text(item) for item in value]
    return int(value) if isinstance(value, np.integer) else value
