"""Stack traces of a run that hangs."""

import faulthandler
import platform
import sys
import threading
import time
from typing import IO, Self

import jax

from vit_jax.training.hooks.base import Hook
from vit_jax.training.run import Run


class Watchdog(Hook):
    """Prints the stacks of all threads when no step has completed for a while.

    Every process has its own watchdog, which shows which process waits for which. It only reports:
    a long evaluation looks the same as a hang.
    """

    def __init__(self, seconds: float, file: IO[str] | None = None):
        """Declares a watchdog, which runs within a `with` block.

        Args:
            seconds: time without a step until a report, and between reports; 0 never reports.
            file: file with a descriptor; None for stderr.
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

    def after_step(self, run: Run, step: int, metrics: dict[str, jax.Array]) -> None:
        """Restarts the clock."""
        self.saw(step)

    def saw(self, step: int) -> None:
        """Restarts the clock after a step."""
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
            f"watchdog: process {jax.process_index()} on {platform.node()} has completed no step "
            f"for {seconds:.0f} s, since step {self._step}; stacks of its threads:",
            file=self._file, flush=True,
        )  # fmt: skip
        faulthandler.dump_traceback(self._file, all_threads=True)
