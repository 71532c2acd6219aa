"""Clock of a training loop: examples per second, and time spent waiting for data."""

import collections
import concurrent.futures
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax


class Throughput:
    """Measures the steps of a run, and keeps the host at most one step ahead of the devices."""

    def __init__(self, batch_size: int):
        """Starts the clock.

        Args:
            batch_size: examples per step, over all devices.
        """
        self._batch_size = batch_size
        self._watcher = concurrent.futures.ThreadPoolExecutor(1, "throughput")
        self._running: collections.deque[concurrent.futures.Future[float]] = collections.deque()
        self.restart(0)

    def restart(self, step: int) -> None:
        """Starts the clock anew after a step.

        Args:
            step: steps done.
        """
        self._step, self._start = step, time.monotonic()
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wraps the reading of a batch: counts the time in which the devices are idle.

        While they still compute the previous step, reading costs nothing.
        """
        start = time.monotonic()
        yield
        end = time.monotonic()
        if not self._running:
            self._waited += end - start
        elif self._running[-1].done():
            self._waited += max(0.0, end - max(start, self._running[-1].result()))

    def dispatched(self, result: Any) -> None:
        """Registers the result of a step that was dispatched, and waits for the previous one.

        The devices always have one step to run while the next is dispatched, and hold no more
        batches than those of two steps and the one that is read ahead.
        """
        self._running.append(self._watcher.submit(_ready_time, result))
        if len(self._running) > 2:
            self._running.popleft()
        if len(self._running) == 2:
            self._running[0].result()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Wraps work that is not training, as evaluation."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def rates(self, step: int) -> dict[str, float]:
        """Examples per second and fraction of time spent waiting for data, since the last call.

        Args:
            step: steps done.
        """
        seconds = max(time.monotonic() - self._start - self._paused, 1e-9)
        rates = {
            "examples_per_second": (step - self._step) * self._batch_size / seconds,
            "data_wait_fraction": min(self._waited / seconds, 1.0),
        }
        self.restart(step)
        return rates


def _ready_time(result: Any) -> float:
    """Waits for a result; returns the time at which it was ready."""
    jax.block_until_ready(result)
    return time.monotonic()
