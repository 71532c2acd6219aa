"""Examples that cannot be read: they are replaced, counted, logged and limited."""

import collections
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from vit_jax.data.progress import progress
from vit_jax.data.sources.base import Source
from vit_jax.errors import UserError

T = TypeVar("T")

logger = logging.getLogger(__name__)

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]

MIN_READ = 1000
"""Number of examples below which the fraction of broken ones is not estimated."""

LEFT_OUT = "left_out"
"""Key under which a transform counts, by reason, the boxes that an example has lost."""

_MAX_IN_A_ROW = 1000  # consecutive broken examples after which the search for a good one ends
_UNLIMITED_LINES = 10  # lines of the log before they are rate-limited
_LINE_SECONDS = 60.0  # interval of rate-limited lines
_LISTED = 20  # reasons that the final message lists


@runtime_checkable
class RandomAccess(Protocol):
    """Examples by index."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int, /) -> Any:
        """One example."""


def read_all(
    source: Source, read: Callable[[Example], T], max_fraction: float, description: str
) -> Iterator[tuple[int, T]]:
    """Reads the annotations of all examples, with the loader's policy for broken ones.

    Args:
        source: training source.
        read: reads what is needed from an annotation; raises UserError where it is missing.
        max_fraction: fraction of the examples above which broken ones are an error.
        description: text of the progress bar.

    Yields:
        Row and result of each example that can be read; the others are counted and logged.

    Raises:
        UserError: too many examples are broken, or all of them.
    """
    broken, failed = BrokenLog(max_fraction), None
    for row in progress(range(len(source)), description):
        try:
            found = read(source.annotation(row))
        except (UserError, OSError) as error:
            failed = named(error, row)
            broken.add([failed], row + 1)
            continue
        yield row, found
    if broken.count == len(source) and failed is not None:
        raise UserError(f"none of the {len(source)} examples can be read, the last: {failed}")


def named(error: Exception, row: int) -> str:
    """Message of an error, with the row of the example."""
    return f"example {row}: {error or type(error).__name__}"


class ReadExample:
    """Reads and transforms an example; a broken one is replaced by the next good one by index.

    With groups, one random member is read: an epoch takes each group once. With groups of equal
    captions no batch has the same caption twice, which a contrastive loss would count as a
    negative.
    """

    def __init__(
        self,
        source: RandomAccess,
        transform: Transform,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Stores the arguments.

        Args:
            source: examples by index.
            transform: maps an example and a NumPy generator to a dict of arrays.
            groups: rows of `source` per group; None for single rows.
        """
        self._source, self._transform, self._groups = source, transform, groups

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Example, list[str]]:
        """Reads the example of an index.

        Returns:
            The transformed example, and the errors of the broken examples before it.

        Raises:
            UserError: too many consecutive examples are broken.
        """
        count = len(self._source if self._groups is None else self._groups)
        broken: list[str] = []
        for offset in range(min(count, _MAX_IN_A_ROW)):
            row = (index + offset) % count
            try:
                if self._groups is not None:
                    row = self._groups[row][int(rng.integers(len(self._groups[row])))]
                return self._transform(self._source[row], rng), broken
            except (UserError, OSError) as error:
                broken.append(named(error, row))
        raise UserError(f"{len(broken)} examples in a row cannot be read, the last: {broken[-1]}")


class BrokenLog:
    """Counts and logs broken examples, up to a maximum fraction."""

    def __init__(self, max_fraction: float) -> None:
        """Starts at zero.

        Args:
            max_fraction: fraction of the examples read above which an error is raised.

        Raises:
            UserError: the fraction is not in [0, 1].
        """
        if not 0 <= max_fraction <= 1:
            raise UserError(
                f"config.data.max_broken_fraction={max_fraction}: expected a fraction from 0 to 1"
            )
        self.count = 0
        self._max_fraction, self._reasons = max_fraction, dict[str, None]()
        self._logged = 0
        self._last_line = time.monotonic()

    def add(self, reasons: Sequence[str], read: int) -> None:
        """Counts broken examples.

        Args:
            reasons: one error message per example.
            read: number of examples read so far.

        Raises:
            UserError: the fraction is above the maximum; the message lists the first errors.
        """
        for reason in reasons:
            self.count += 1
            if len(self._reasons) < _LISTED:
                self._reasons[reason] = None
            self._log(reason)
        if reasons and self.count > self._max_fraction * max(read, MIN_READ):
            listed = "\n  ".join(self._reasons)
            raise UserError(
                f"{self.count} of {read} examples cannot be read, more than "
                f"config.data.max_broken_fraction={self._max_fraction:g} of them (at least of "
                f"{MIN_READ}):\n  {listed}" + ("\n  ..." if self.count > len(self._reasons) else "")
            )

    def _log(self, reason: str) -> None:
        now = time.monotonic()
        if self._logged >= _UNLIMITED_LINES and now - self._last_line < _LINE_SECONDS:
            return
        self._logged, self._last_line = self._logged + 1, now
        # An error, because all processes except the first one log errors only.
        logger.error("Broken example %d: %s", self.count, reason)


class LeftOutLog:
    """Counts boxes that are left out, and logs the counts at most once per minute.

    Attributes:
        counts: number of boxes by reason.
    """

    def __init__(self) -> None:
        """Starts at zero."""
        self.counts: collections.Counter[str] = collections.Counter()
        self._last_line = -_LINE_SECONDS

    def add(self, counts: collections.Counter[str], read: int) -> None:
        """Counts boxes.

        Args:
            counts: number of boxes by reason.
            read: number of examples read so far.
        """
        self.counts.update(counts)
        now = time.monotonic()
        if not counts.total() or now - self._last_line < _LINE_SECONDS:
            return
        self._last_line = now
        parts = [f"{n:,} ({reason})" for reason, n in self.counts.items() if n]
        logger.warning("Boxes left out of the first %d examples: %s", read, ", ".join(parts))
