"""The emoji image-text set: a TFDS builder without TensorFlow, built once into the user's cache.

Splits (docs/data_card_emoji.md has the counts):

- `train`: Twemoji and OpenMoji, every skin tone, of the names that are not held out;
- `heldout_names`: Twemoji and OpenMoji, every skin tone, of the 10% of names held out;
- `heldout_base`: the part of `heldout_names` without skin tones;
- `heldout_artist`: Noto, drawings without tones of all names, where the font is present.
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

from vit_jax.data.embedded import art
from vit_jax.errors import UserError

HELDOUT_FRACTION = 0.1
IMAGE_SIZE = 64  # px, both sides
_TRAIN_ARTISTS = ("twemoji", "openmoji")


# --- names, without touching images -------------------------------------------------------------


def base_names() -> list[str]:
    """The names of all emoji without skin tones, sorted; a row's `label` is the index in this list.

    Raises:
      MissingPackageError: a data package is not installed.
    """
    return sorted({row.name for row in art.all_emoji()})


def heldout_names(names: Iterable[str] | None = None) -> list[str]:
    """The names kept out of training: round(10%) of them, those of the lowest SHA-256, sorted.

    Args:
      names: all names, their order and repeats do not matter; by default `base_names()`.
    """
    unique = set(base_names() if names is None else names)
    by_hash = sorted(unique, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return sorted(by_hash[: round(HELDOUT_FRACTION * len(unique))])


# --- the builder ----------------------------------------------------------------------------------


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Drawings of emoji by several artists with their names.

    Features of a row: `image` (64, 64, 4) uint8 RGBA PNG; `emoji`, the code points as text; `name`
    without skin tone; `caption`, the name with its tones; `aliases`, other names; `category`;
    `artist`; `skin_tone`, "" for none; `label`, the index of `name` among all names.
    """

    VERSION = tfds.core.Version("1.2.0")
    # TFDS looks for checksum files beside the module through importlib_resources, which it does
    # not declare for Python >= 3.9; there are no checksums, nothing is downloaded.
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
        del dl_manager  # Nothing is downloaded.
        rows = art.all_emoji()
        toneless = [row for row in rows if not row.skin_tone]
        held = set(heldout_names())
        drawers = art.artists()
        known = {artist: drawers[artist] for artist in _TRAIN_ARTISTS}
        train = list(self._generate_examples([r for r in rows if r.name not in held], known))
        # Some artists reuse a drawing: OpenMoji's Chad is its Romania. Seen is not held out.
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
                picture = draw(row.sequence)
                if picture is None:
                    continue
                png = io.BytesIO()
                art.fit(picture, IMAGE_SIZE).save(png, "PNG")
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


def cache_dir() -> pathlib.Path:
    """$VIT_JAX_CACHE, else $XDG_CACHE_HOME/vit_jax, else ~/.cache/vit_jax."""
    if own := os.environ.get("VIT_JAX_CACHE"):
        return pathlib.Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(xdg) if xdg else pathlib.Path.home() / ".cache") / "vit_jax"


def build(cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Builds the data unless the cache has them; returns the folder for `builder_from_directory`.

    The folder's name carries the builder's version and a hash of the sources' versions, so that a
    changed package builds anew beside the old data. It appears by one rename when it is complete,
    and a lock lets a second process wait for the first one.

    Args:
      cache: where to build, by default `cache_dir()`.

    Raises:
      MissingPackageError: a data package is not installed.
      UserError: the cache folder cannot be written.
    """
    sources = art.source_versions(with_noto=art.why_no_noto() is None)
    digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:12]
    home = pathlib.Path(cache if cache is not None else cache_dir()).absolute() / "emoji"
    final = home / f"{Emoji.VERSION}-{digest}"
    if final.exists():
        return final
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # Released when the file closes, even by a crash.
            if not final.exists():
                _build_into(final, sources)
    except OSError as error:
        raise UserError(
            f"cannot build the emoji data in {home}: {error}. "
            "Set VIT_JAX_CACHE to a folder that can be written and has 100 MB free."
        ) from error
    return final


def _build_into(final: pathlib.Path, sources: dict[str, str]) -> None:
    """Builds beside `final`, then renames. The caller holds the lock."""
    for abandoned in final.parent.glob("building-*"):  # Of a process that was killed.
        shutil.rmtree(abandoned, ignore_errors=True)
    logging.info("Building the emoji data once into %s, about 10 s.", final)
    with tempfile.TemporaryDirectory(prefix="building-", dir=final.parent) as scratch:
        builder = Emoji(data_dir=scratch, file_format="array_record")
        with _quiet_tfds():
            builder.download_and_prepare(download_dir=scratch)
        built = pathlib.Path(builder.data_dir)
        (built / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", "utf-8")
        built.rename(final)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """No progress bars, and TFDS's announcements not on stdout, which may carry a user's JSON."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def read_split(split: str, directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All rows of a split, features as declared by `Emoji`, but `image` still PNG bytes.

    Args:
      split: one of `sources.SPLITS["emoji"]`.
      directory: what `build` returned.

    Raises:
      MissingPackageError: the data were built without Noto and `heldout_artist` is asked for.
    """
    builder = tfds.builder_from_directory(directory)
    if split not in builder.info.splits:
        reason = art.why_no_noto() or f"the data in {directory} were built without it"
        raise art.MissingPackageError(
            f"split {split!r} of the emoji data needs the Noto drawings: {reason}"
        )
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [{key: _text(value) for key, value in record.items()} for record in records]


def _text(value: Any) -> Any:
    """TFDS gives text as bytes; PNG bytes stay what they are."""
    if isinstance(value, bytes) and not value.startswith(b"\x89PNG"):
        return value.decode()
    if isinstance(value, np.ndarray | list) and not isinstance(value, bytes):
        return [_text(item) for item in value]
    return int(value) if isinstance(value, np.integer) else value
