"""Signals that ask a run to stop, handled between two steps."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from vit_jax.errors import Interrupted


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields a function (step) -> whether to stop, so that the current step can end and be saved.

    SIGTERM and SIGINT are treated alike; a second SIGINT acts at once. Several processes must stop
    at the same step: `jax.distributed` catches SIGTERM, or the notice of the platform, on any of
    them, and all agree on one step. SIGINT is forwarded to it.

    Raises:
        Interrupted: a signal before the first step of a single process; there is nothing to save.
    """
    distributed = jax.process_count() > 1
    received: list[int] = []
    stepping = False

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if distributed:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not stepping:
            raise Interrupted("stopped before the first step; the same command starts again")

    def stop(step: int) -> bool:
        nonlocal stepping
        stepping = True
        return multihost_utils.reached_preemption_sync_point(step) if distributed else any(received)

    # With several processes `jax.distributed` handles SIGTERM.
    handled = (signal.SIGINT,) if distributed else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
