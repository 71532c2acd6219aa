"""Scenes of emoji with boxes and masks, drawn when they are read."""

import dataclasses
import functools
from typing import Any

import numpy as np

from vit_jax.data.embedded import scenes
from vit_jax.data.sources.base import Source, check_index
from vit_jax.data.sources.samples import EmojiSource
from vit_jax.errors import UserError, check_name

# Split of the scenes -> split of the emoji. A scene's random numbers depend on the position here.
SPLITS = {
    "train": "train",
    "test": "train",
    "heldout_names": "heldout_names",
    "heldout_base": "heldout_base",
    "heldout_artist": "heldout_artist",
}
MIN_SIZE = 32  # px, below which the smallest drawings are no longer recognisable


class EmojiScenes(Source):
    """Several emoji on a background (`emoji_scenes:SPLIT?size=96&count=10000`).

    `train` and `test` have the drawings of `emoji:train` in different scenes; `heldout_names`,
    `heldout_base` and `heldout_artist` have those of the split of the emoji of that name. Names are
    equally frequent. A scene is drawn when it is read, and depends on its split, index and options
    only.

    An example has `image`, uint8 (size, size, 3); `boxes`, float32 (n, 4), x0, y0, x1, y1 around
    the visible part of each drawing, px; `names`, without skin tones; `crowd`, False for each;
    `segmentation`, a list of bool (size, size), the visible part of each drawing; `vocabulary`, all
    names of the split.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        """Options of the spec.

        Attributes:
            size: side of the scenes, px.
            count: number of scenes.
            max_drawings: largest number of drawings in a scene.
            min_scale: smallest side of a drawing, as a fraction of the scene's side.
            max_scale: largest side of a drawing, as a fraction of the scene's side.
        """

        size: int = 96
        count: int = 10_000
        max_drawings: int = scenes.MAX_DRAWINGS
        min_scale: float = scenes.SCALES[0]
        max_scale: float = scenes.SCALES[1]

    def __init__(self, config: Config, place: str) -> None:
        """Reads the names of the emoji; drawings are read when they are needed.

        Args:
            config: options of the spec.
            place: split, a key of `SPLITS`.

        Raises:
            UserError: an unknown split, or a size or number that is too small.
            MissingPackageError: a package is not installed.
        """
        check_name(place, SPLITS, "split of emoji_scenes")
        if config.size < MIN_SIZE:
            raise UserError(f"emoji_scenes: size={config.size}, expected at least {MIN_SIZE} px")
        if config.count < 1:
            raise UserError(f"emoji_scenes: count={config.count}, expected at least one scene")
        if config.max_drawings < 1:
            raise UserError(
                f"emoji_scenes: max_drawings={config.max_drawings}, expected at least 1"
            )
        if not 0 < config.min_scale <= config.max_scale <= 1:
            raise UserError(
                f"emoji_scenes: min_scale={config.min_scale}, max_scale={config.max_scale}: "
                "expected fractions of the scene's side, the smaller one first"
            )
        self._config, self._split = config, place
        self._emoji = _open_emoji(SPLITS[place])
        names = self._emoji.class_names or []
        rows: dict[str, list[int]] = {}
        for row, label in enumerate(self._emoji.labels):
            rows.setdefault(names[label], []).append(row)
        self.class_names: list[str] = sorted(rows)
        self._rows = [rows[name] for name in self.class_names]

    @property
    def labels(self) -> None:
        """None: an image has several classes."""
        return None

    def __len__(self) -> int:
        """See `Source`."""
        return self._config.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        index = check_index(index, len(self))
        config = self._config
        rng = np.random.default_rng((list(SPLITS).index(self._split), index))
        scene = scenes.draw(
            config.size,
            len(self._rows),
            self._drawing,
            rng,
            max_drawings=config.max_drawings,
            scales=(config.min_scale, config.max_scale),
        )
        return {
            "image": scene.image,
            "key": f"emoji_scenes:{self._split}, scene {index}",
            "boxes": scene.boxes,
            "names": [self.class_names[thing] for thing in scene.things],
            "crowd": np.zeros(len(scene.things), np.bool_),
            "segmentation": list(scene.masks),
            "vocabulary": self.class_names,
        }

    def _drawing(self, name: int, rng: np.random.Generator) -> scenes.Drawing:
        rows = self._rows[name]
        return self._emoji[rows[int(rng.integers(len(rows)))]]["image"]

    def __reduce__(self) -> tuple:
        """Pickles the split."""
        return EmojiScenes, (self._config, self._split)


@functools.cache
def _open_emoji(split: str) -> EmojiSource:
    """A split of the emoji, with the drawings that were decoded; `train` and `test` share it."""
    return EmojiSource(EmojiSource.Config(), split)
