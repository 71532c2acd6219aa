"""Signals that ask a command to stop: SIGTERM, and SIGINT from Ctrl-C.

Python runs the handlers of signals between two instructions of the main thread. A compilation or a
collective blocks it for minutes, and an exception that unwinds through them can crash the process.
A command therefore blocks both signals in all threads, and one thread waits for them. It ends the
process where there is nothing to save. Files are written atomically, so nothing is lost by that.

A command goes through these phases:

    block()      signals wait, also across the restart of the interpreter
    watch()      a signal ends the process at once, or after the main thread has cleaned up
    connected()  with several processes that train, `jax.distributed` decides when all stop
    working()    the first signal asks the run to stop, a second one ends the process
    finish()     signals are ignored: the work is done, the process is exiting
"""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker

from vit_jax.atomic_files import remove_partial_files

RESUMABLE = os.EX_TEMPFAIL  # exit code 75: the same command continues
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_TOGETHER = 1.0  # seconds within which signals are one: Ctrl-C sends one, and so does a launcher
_GRACE = 0.7  # seconds in which the main thread may clean up
_CLEAN_UP = signal.SIGUSR1  # tells the main thread to do so
_LATER = "stopped at once; the same command continues from the newest checkpoint"


@dataclasses.dataclass
class _Watcher:
    """State of the thread.

    Attributes:
        message: line that is printed when the process is ended.
        code: exit code; 0 for 128 + the number of the signal.
        ending: whether the first signal ends the process.
        unwinds: whether the main thread cleans up before.
        forwarding: whether signals are passed on to the handler of `jax.distributed`.
        ignoring: whether signals have no effect.
        first: time of the first signal; None before it.
    """

    message: str
    code: int
    ending: bool
    unwinds: bool
    forwarding: bool = False
    ignoring: bool = False
    first: float | None = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def run(self) -> None:
        """Waits for signals."""
        while True:
            number = signal.sigwait(SIGNALS)
            with self.lock:
                if not self.ignoring:
                    self._receive(number)

    def _receive(self, number: int) -> None:
        now = time.monotonic()
        if self.ending or (self.first is not None and now - self.first > _TOGETHER):
            self.code = self.code or 128 + number
            if self.unwinds:
                signal.pthread_kill(threading.main_thread().ident or 0, _CLEAN_UP)
                time.sleep(_GRACE)
            _end(self.message, self.code)
        self.first = self.first or now
        if self.forwarding:
            _forward()


_watcher: _Watcher | None = None
_ended = threading.Lock()


def block() -> None:
    """Lets signals wait, in this thread and in those that it starts.

    A program that replaces this one inherits that.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def watch(message: str, code: int = 0, *, hold: bool = False, unwinds: bool = False) -> None:
    """From here on, a signal ends the process within a moment, with one line and an exit code.

    Args:
        message: the line, which says how to go on.
        code: exit code; 0 for 128 + the number of the signal, as shells have it.
        hold: whether a signal waits for `connected`, in a run of several processes.
        unwinds: whether the main thread gets a KeyboardInterrupt first, to save what it has. The
            caller of the command catches it and calls `end`; after `_GRACE` the process is ended.
    """
    global _watcher
    _watcher = _Watcher(message, code, ending=not hold, unwinds=unwinds)
    if unwinds:
        signal.signal(_CLEAN_UP, signal.default_int_handler)
    thread = threading.Thread(target=_watcher.run, name="signals", daemon=True)
    thread.start()

    def pass_on(number: int, frame: object) -> None:
        signal.pthread_kill(thread.ident or 0, number)

    # For signals that a library unblocks; also where the parent process ignores them.
    for number in SIGNALS:
        signal.signal(number, pass_on)
    # `multiprocessing` of Python 3.11 unblocks them when it starts this process: now, not later.
    resource_tracker.ensure_running()
    block()


def watches() -> bool:
    """Whether this process is a command that has called `watch`."""
    return _watcher is not None


def connected() -> None:
    """Passes signals of a training process on to `jax.distributed` from here on."""
    if _watcher is None:
        return
    with _watcher.lock:
        _watcher.forwarding = not _watcher.ending
        if _watcher.forwarding and _watcher.first is not None:
            _forward()


def working() -> None:
    """From here on there is a state to save, and the first signal is left to the run."""
    if _watcher is not None:
        with _watcher.lock:
            _watcher.ending, _watcher.message = False, _LATER


def requested() -> bool:
    """Whether a signal has arrived that has not ended the process."""
    return _watcher is not None and _watcher.first is not None


def finish() -> None:
    """Ignores signals until the process has exited."""
    if _watcher is not None:
        with _watcher.lock:
            _watcher.ignoring = True


def end() -> None:
    """Ends the process after a KeyboardInterrupt has unwound the main thread."""
    gc.collect()  # executors that the work has left behind release their semaphores
    if _watcher is not None:
        _end(_watcher.message, _watcher.code or 128 + signal.SIGINT)


def _forward() -> None:
    """Runs the handler of SIGTERM that `jax.distributed` has set, in this thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _end(message: str, code: int) -> None:
    """Ends this process and those that it has started, without unwinding."""
    if not _ended.acquire(blocking=False):
        time.sleep(60)  # the other thread ends the process
    line = ("\n" if sys.stderr.isatty() else "") + message + "\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    with contextlib.suppress(Exception):
        for child in multiprocessing.active_children():
            child.kill()
    remove_partial_files()
    os._exit(code)
