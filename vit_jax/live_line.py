"""A line of progress on stderr, for people."""

import sys
import time

import jax


class LiveLine:
    """One line that is written over; where no one is watching, a line every half minute.

    Process 0 alone prints.
    """

    def __init__(self, interval: float, last: float):
        """Chooses how often.

        Args:
            interval: seconds between two updates of the live line.
            last: clock, as `time.monotonic`, from which the first interval counts.
        """
        self._live = sys.stderr.isatty()
        self._silent = jax.process_index() > 0
        self._seconds, self._last = (interval if self._live else 30.0), last

    def due(self) -> bool:
        """Whether the last line is old enough for another."""
        return not self._silent and time.monotonic() - self._last >= self._seconds

    def show(self, text: str, *, stays: bool = False) -> None:
        """Prints; a line that stays is not written over by the next one."""
        if self._silent:
            return
        self._last = time.monotonic()
        end = "" if self._live and not stays else "\n"
        print(f"\r\x1b[K{text}" if self._live else text, end=end, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the live line away."""
        if self._live:
            self.show("")
