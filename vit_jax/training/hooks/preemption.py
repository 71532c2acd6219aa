"""Signals that ask a run to stop, handled between two steps."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from vit_jax import interruption
from vit_jax.errors import Interrupted

# `jax.distributed` counts its calls from 1 in every process, and compares for equality: with the
# steps of a resumed run, a signal before its first step would be missed.
_calls = itertools.count(1)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns, after each step, whether to save and stop.

    SIGTERM and SIGINT are treated alike; a second one acts at once. Several processes must stop at
    the same step: `jax.distributed` learns of SIGTERM, or of the notice of the platform, on any of
    them, and all agree on one step. In a command, `interruption` receives the signals, and ends the
    process before its first step is done. Elsewhere, as in a notebook, they have handlers here.

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

    def stop() -> bool:
        nonlocal stepping
        stepping = True
        interruption.working()
        if distributed:
            return multihost_utils.reached_preemption_sync_point(next(_calls))
        return bool(received) or interruption.requested()

    # With several processes `jax.distributed` handles SIGTERM.
    handled = [signal.SIGINT] if distributed else [signal.SIGINT, signal.SIGTERM]
    if interruption.watches():
        handled = []
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
