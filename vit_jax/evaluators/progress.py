"""How far a pass over a source is, for people."""

import datetime
import time

from vit_jax.live_line import LiveLine


class Progress:
    """A live line with rate and time left; where no one is watching, a line every half minute.

    Passes that end sooner print nothing there.
    """

    def __init__(self, what: str, total: int, done: int):
        """Starts the clock.

        Args:
            what: is being computed.
            total: rows.
            done: rows that were there before.
        """
        self._what, self._total, self._first = what, total, done
        self._start = time.monotonic()
        self._line = LiveLine(0.5, last=self._start)

    def show(self, done: int) -> None:
        """Prints the line when it is due; `done` rows are there now."""
        if not self._line.due():
            return
        rate = (done - self._first) / (time.monotonic() - self._start)
        left = datetime.timedelta(seconds=round((self._total - done) / max(rate, 1e-9)))
        self._line.show(
            f"{self._what}: {done}/{self._total} ({done / self._total:.0%})  {rate:.0f}/s  "
            f"left {left}"
        )

    def close(self) -> None:
        """Clears the live line."""
        self._line.clear()
