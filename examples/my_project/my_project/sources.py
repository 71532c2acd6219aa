"""Data sources of the project."""

import dataclasses
from typing import Any

import numpy as np

from vit_jax.data.sources.base import Source
from vit_jax.errors import check_name


class Shapes(Source):
    """Drawings of discs, squares and triangles of random colour, size and place.

    An image depends on the split and its index only, so nothing is stored.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        """Options of the spec, as `my_project.sources:Shapes:train?count=3000`.

        Attributes:
            count: number of images.
            size: height and width of an image, px.
        """

        count: int = 3000
        size: int = 32

    def __init__(self, config: Config, place: str) -> None:
        """Checks the split.

        Args:
            config: options of the spec.
            place: split, train or test.
        """
        check_name(place, ("train", "test"), "split of Shapes")
        self._config, self._place = config, place
        self.class_names = ["disc", "square", "triangle"]

    def __len__(self) -> int:
        """Number of images."""
        return self._config.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Draws an image."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        rng = np.random.default_rng((self._place == "train", index))
        example = self.annotation(index)
        size = self._config.size
        radius = size * rng.uniform(0.15, 0.3)
        row, column = rng.uniform(radius, size - radius, 2)
        rows, columns = np.mgrid[:size, :size]
        y, x = (rows - row) / radius, (columns - column) / radius
        inside = {
            "disc": x**2 + y**2 < 1,
            "square": np.maximum(abs(x), abs(y)) < 0.85,
            "triangle": (abs(x) < (y + 1) / 2) & (abs(y) < 1),
        }[example["name"]]
        background, foreground = rng.integers(0, 100, 3), rng.integers(155, 256, 3)
        image = np.where(inside[..., None], foreground, background).astype(np.uint8)
        return {"image": image, **example}

    def annotation(self, index: int) -> dict[str, Any]:
        """Label and name of an example, without drawing it."""
        label = index % len(self.class_names)
        return {"label": label, "name": self.class_names[label]}
