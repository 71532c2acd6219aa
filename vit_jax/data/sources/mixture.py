"""Several sources as one."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.sources.base import Source, check_index

logger = logging.getLogger(__name__)


class Mixture(Source):
    """The examples of several sources, one source after the other.

    It has classes where all sources have the same ones.

    Attributes:
        parts: range of indices of each source.
        weights: fraction of each source in every training batch; None to take every example once
            per epoch.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None) -> None:
        """Concatenates sources.

        Args:
            sources: the sources.
            weights: relative weight of each source; None for no weights.
        """
        self._sources = tuple(sources)
        ends = np.cumsum([len(source) for source in sources]).tolist()
        self.parts = [range(end - len(s), end) for s, end in zip(sources, ends, strict=True)]
        self.weights = None if weights is None else [w / sum(weights) for w in weights]
        names = [source.class_names for source in sources]
        self.class_names = names[0] if all(each == names[0] for each in names) else None
        if self.class_names is None and any(names):
            logger.warning("Joined sources have different classes: their labels are left out")

    @property
    def labels(self) -> np.ndarray | None:
        """See `Source`."""
        found = [source.labels for source in self._sources] if self.class_names else [None]
        labels = [each for each in found if each is not None]
        return np.concatenate(labels) if len(labels) == len(found) else None

    def __len__(self) -> int:
        """See `Source`."""
        return self.parts[-1].stop

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        source, inner = self._find(index)
        example = source[inner]
        return example if self.class_names else _without_label(example)

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        source, inner = self._find(index)
        example = source.annotation(inner)
        return example if self.class_names else _without_label(example)

    def draw_row(self, rng: np.random.Generator) -> int:
        """See `Source`."""
        if self.weights is None:
            return super().draw_row(rng)
        part = self.parts[int(rng.choice(len(self.parts), p=self.weights))]
        return int(rng.integers(part.start, part.stop))

    def _find(self, index: int) -> tuple[Source, int]:
        index = check_index(index, len(self))
        number = next(i for i, part in enumerate(self.parts) if index < part.stop)
        return self._sources[number], index - self.parts[number].start


def _without_label(example: dict[str, Any]) -> dict[str, Any]:
    """Drops the label, which differs between sources; the class name still serves as a caption."""
    return {key: value for key, value in example.items() if key != "label"}
