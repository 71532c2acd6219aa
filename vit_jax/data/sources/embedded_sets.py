"""The sets that come with installed packages: emoji with captions, small labelled sets."""

import os
from typing import Any

import numpy as np

from vit_jax.data.embedded import labelled
from vit_jax.data.images import read_image


class EmojiSource:
    """A split of the embedded emoji; builds them into the user's cache at the first use.

    An example: `image` (64, 64, 4) uint8 RGBA; `captions`, the full caption, the name without skin
    tone and the aliases; `label` and `name`; `emoji`, `category`, `artist`, `skin_tone`, `toned`.
    A decoded image stays in memory (16 KB), so that the next epoch costs microseconds.
    """

    def __init__(self, split: str, directory: str | os.PathLike[str] | None = None) -> None:
        """Args: split, one of SPLITS["emoji"]; directory, what `emoji.build` gave."""
        from vit_jax.data.embedded import emoji

        self._split = split
        self._directory = os.fspath(directory if directory is not None else emoji.build())
        self.class_names = emoji.base_names()
        self._rows = [_emoji_example(row) for row in emoji.read_split(split, self._directory)]
        self.labels = np.array([row["label"] for row in self._rows], np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        if isinstance(row["image"], bytes):
            row["image"] = read_image(row["image"])
        return dict(row)

    def annotation(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in self._rows[index].items() if key != "image"}

    def __reduce__(self) -> tuple:
        return EmojiSource, (self._split, self._directory)


def _emoji_example(row: dict[str, Any]) -> dict[str, Any]:
    captions = list(dict.fromkeys([row.pop("caption"), row["name"], *row.pop("aliases")]))
    return {**row, "captions": captions, "toned": bool(row["skin_tone"])}


class LabelledSource:
    """A split of a set of `embedded.labelled`: `image` (H, W, 3) uint8, `label` and `name`."""

    def __init__(self, name: str, split: str) -> None:
        """Args: name, a key of labelled.LOADERS; split, "train" or "test"."""
        self._spec = (name, split)
        data = labelled.load(name, split)
        self._images = data.images
        self.labels = data.labels
        self.class_names = list(data.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.repeat(self._images[index][:, :, None], 3, axis=2)
        return {"image": image, **self.annotation(index)}

    def annotation(self, index: int) -> dict[str, Any]:
        label = int(self.labels[index])
        return {"label": label, "name": self.class_names[label]}

    def __reduce__(self) -> tuple:
        return LabelledSource, self._spec
