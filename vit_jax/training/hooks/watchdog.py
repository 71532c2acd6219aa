"""Says where a process hangs."""

import faulthandler
import platform
import sys
import threading
import time
from typing import IO, Self

import jax


class Watchdog:
    """Writes the stacks of all threads when no step was done for a while, and goes on waiting.

    Every process of a run has its own, so that one sees which of them waits for which. It reports
    and ends nothing: a long evaluation looks the same from here.
    """

    def __init__(self, seconds: float, file: IO[str] | None = None):
        """Watches within a `with` block.

        Args:
            seconds: without a step, until a report, and between reports; 0 never reports.
            file: with a descriptor; stderr by default.
        """
        self._seconds, self._file = seconds, file or sys.stderr
        self._step = 0
        self._seen = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()

    def saw(self, step: int) -> None:
        """A step is done."""
        self._step, self._seen = step, time.monotonic()

    def _watch(self) -> None:
        due = self._seen + self._seconds
        while not self._closed.wait(max(due - time.monotonic(), 0.0)):
            now = time.monotonic()
            if now - self._seen >= self._seconds:
                self._report(now - self._seen)
                due = now + self._seconds
            else:
                due = self._seen + self._seconds

    def _report(self, seconds: float) -> None:
        print(
            f"watchdog: process {jax.process_index()} on {platform.node()} has done no step for "
            f"{seconds:.0f} s, since step {self._step}; its threads stand at:",
            file=self._file, flush=True,
        )  # fmt: skip
        faulthandler.dump_traceback(self._file, all_threads=True)
