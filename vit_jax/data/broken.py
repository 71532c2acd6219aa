"""Examples that cannot be read: replaced, counted, named, and too many of them refused."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from vit_jax.errors import UserError

logger = logging.getLogger(__name__)

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]

MIN_READ = 1000
"""The share of broken examples is taken of at least so many: one in the first ten says little."""

_IN_A_ROW = 1000  # broken examples after which no good one is looked for
_NAMED_AT_ONCE = 10  # lines of the log before they are rationed
_SECONDS = 60.0  # between rationed lines
_KEPT = 20  # reasons that the last message lists


class RandomAccess(Protocol):
    """What a source must offer: a length and examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ReadExample:
    """Reads and transforms an example; in place of a broken one the next good one by index.

    With groups, one member is drawn: an epoch holds each group once. With groups of equal captions
    no batch holds the same caption twice, which a contrastive loss would count as a negative.
    """

    def __init__(
        self,
        source: RandomAccess,
        transform: Transform,
        groups: Sequence[Sequence[int]] | None = None,
    ):
        """Args as for `Batches`."""
        self._source, self._transform, self._groups = source, transform, groups

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Example, list[str]]:
        """The transformed example and the reasons for which others before it were passed over."""
        count = len(self._source if self._groups is None else self._groups)
        broken: list[str] = []
        for offset in range(min(count, _IN_A_ROW)):
            try:
                return self._read((index + offset) % count, rng), broken
            except (UserError, OSError) as error:
                broken.append(str(error) or type(error).__name__)
        raise UserError(f"{len(broken)} examples in a row cannot be read, the last: {broken[-1]}")

    def _read(self, index: int, rng: np.random.Generator) -> Example:
        if self._groups is not None:
            members = self._groups[index]
            index = members[int(rng.integers(len(members)))]
        return self._transform(self._source[index], rng)


class BrokenLog:
    """Counts broken examples and names them in the log, up to a share."""

    def __init__(self, max_share: float):
        """Args: max_share, of the examples read, of which more stop the run."""
        if not 0 <= max_share <= 1:
            raise UserError(
                f"config.data.max_broken_fraction={max_share}: expected a share from 0 to 1"
            )
        self.count = 0
        self._max_share, self._reasons = max_share, dict[str, None]()
        self._logged = 0
        self._last_line = time.monotonic()

    def add(self, reasons: Sequence[str], read: int) -> None:
        """Notes broken examples.

        Args:
            reasons: one an example.
            read: examples read so far.

        Raises:
            UserError: they are too many; the message lists the first ones.
        """
        for reason in reasons:
            self.count += 1
            if len(self._reasons) < _KEPT:
                self._reasons[reason] = None
            self._log(reason)
        if reasons and self.count > self._max_share * max(read, MIN_READ):
            named = "\n  ".join(self._reasons)
            raise UserError(
                f"{self.count} of {read} examples cannot be read, more than "
                f"config.data.max_broken_fraction={self._max_share:g} of them (at least of {MIN_READ}):"
                f"\n  {named}" + ("\n  ..." if self.count > len(self._reasons) else "")
            )

    def _log(self, reason: str) -> None:
        now = time.monotonic()
        if self._logged >= _NAMED_AT_ONCE and now - self._last_line < _SECONDS:
            return
        self._logged, self._last_line = self._logged + 1, now
        # Every process reads other examples, and all but the first log errors alone.
        logger.error("Broken example %d: %s", self.count, reason)
