"""How far a pass over a source is, for people."""

import datetime
import sys
import time

import jax


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
        self._live = sys.stderr.isatty()
        self._silent = jax.process_index() > 0
        self._start = self._printed = time.monotonic()

    def show(self, done: int) -> None:
        """Prints the line when it is due; `done` rows are there now."""
        now = time.monotonic()
        if self._silent or now - self._printed < (0.5 if self._live else 30.0):
            return
        self._printed = now
        rate = (done - self._first) / (now - self._start)
        left = datetime.timedelta(seconds=round((self._total - done) / max(rate, 1e-9)))
        line = (
            f"{self._what}: {done}/{self._total} ({done / self._total:.0%})  {rate:.0f}/s  "
            f"left {left}"
        )
        self._print(line)

    def close(self) -> None:
        """Clears the live line."""
        if self._live and not self._silent:
            self._print("")

    def _print(self, line: str) -> None:
        end = "" if self._live else "\n"
        print(f"\r\x1b[K{line}" if self._live else line, end=end, file=sys.stderr, flush=True)
