"""One of several choices per batch, as the length of its sequences."""

import dataclasses
import functools

import numpy as np

_BLOCK = 1024  # batches whose choices are drawn at once


@dataclasses.dataclass(frozen=True)
class Draw:
    """Draws one of several choices for each batch.

    A choice depends on the seed and on the number of the batch alone. So all processes and workers
    agree, and a resumed run draws what it would have drawn without the interruption.

    Attributes:
        seed: PRNG seed.
        outcomes: choices that are equally likely; one that comes twice is drawn twice as often.

    Example:
        >>> draw = Draw(seed=0, outcomes=(0, 1, 1))
        >>> draw(7) == Draw(seed=0, outcomes=(0, 1, 1))(7)
        True
    """

    seed: int
    outcomes: tuple[int, ...] = (0,)

    def __call__(self, number: int) -> int:
        """Returns the choice of a batch.

        Args:
            number: number of the batch; the first one of a run is 1.
        """
        block, place = divmod(number, _BLOCK)
        return self.outcomes[int(_integers(self.seed, len(self.outcomes), block)[place])]


@functools.lru_cache(maxsize=16)
def _integers(seed: int, count: int, block: int) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(count, block)))
    return rng.integers(count, size=_BLOCK)
