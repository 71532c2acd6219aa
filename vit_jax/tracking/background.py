"""Trackers that wait for a server, without training waiting for them."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.tracking.base import Tracker

logger = logging.getLogger(__name__)


class Background(Tracker):
    """Opens and calls a tracker on a thread, through a queue of limited length.

    A server that is down, slow or silent costs records, never time: a record that does not fit into
    the queue is dropped, and one that the tracker raises on is not repeated. `close` says how many
    are missing. Opening is repeated until it works.
    """

    def __init__(
        self,
        label: str,
        open_tracker: Callable[[], Tracker],
        *,
        close_seconds: float,
        capacity: int = 1000,
        retry_seconds: float = 10.0,
    ):
        """Starts the thread.

        Args:
            label: name of the tracker in messages.
            open_tracker: opens the tracker; called on the thread.
            close_seconds: time that `close` gives to the records that still wait.
            capacity: records that wait at most.
            retry_seconds: pause after an attempt to open the tracker that has failed.
        """
        self._label, self._open = label, open_tracker
        self._retry_seconds, self._close_seconds = retry_seconds, close_seconds
        self._queue: queue.Queue[tuple[str, tuple]] = queue.Queue(capacity)
        self._closing = threading.Event()
        self._warned = False
        self._made = self._written = 0  # records
        self._thread = threading.Thread(target=self._work, name=f"tracker {label}", daemon=True)
        self._thread.start()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Queues the config."""
        self._put("write_config", config)

    def write_start(self, start: Mapping[str, Any], diff: str) -> None:
        """Queues what this start was made with."""
        self._put("write_start", start, diff)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Queues metrics."""
        self._put("write_scalars", step, scalars)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Queues images."""
        self._put("write_images", step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Queues texts."""
        self._put("write_texts", step, texts)

    def close(self) -> None:
        """Waits for the queue a limited time, and says how many records are missing."""
        self._closing.set()
        self._thread.join(self._close_seconds)
        made, missing = self._made, self._made - self._written
        if missing:
            logger.warning("Tracker %s: %d of %d records are missing.", self._label, missing, made)
        elif self._thread.is_alive():
            logger.warning("Tracker %s does not close; it is left.", self._label)

    def _put(self, method: str, *arguments: Any) -> None:
        self._made += 1
        try:
            self._queue.put_nowait((method, arguments))
        except queue.Full:
            self._warn("it does not keep up, and records are dropped")

    def _work(self) -> None:
        tracker = self._opened()
        if tracker is None:
            return
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                method, arguments = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                getattr(tracker, method)(*arguments)
                self._written += 1
            except Exception as error:  # a client of a server can raise almost anything
                self._warn(repr(error))
        try:
            tracker.close()
        except Exception as error:
            self._warn(repr(error))

    def _opened(self) -> Tracker | None:
        """The tracker; None once the run ends before it could be opened."""
        while True:
            try:
                return self._open()
            except Exception as error:
                self._warn(repr(error))
            if self._closing.wait(self._retry_seconds):
                return None

    def _warn(self, reason: str) -> None:
        """Logs the first failure; the number of missing records follows at the end."""
        if not self._warned:
            logger.warning("Tracker %s: %s. The run goes on.", self._label, reason)
        self._warned = True
