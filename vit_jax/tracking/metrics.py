"""Where metrics go: `metrics.jsonl`, TensorBoard and the progress line."""

import collections
import concurrent.futures
import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

import jax
import numpy as np
import tensorboardX

from vit_jax.atomic_files import write_text
from vit_jax.live_line import LiveLine

FILE_NAME = "metrics.jsonl"


class MetricWriter:
    """Writes scalars to `metrics.jsonl`, one object a line with `step`, and to TensorBoard.

    Method names are those of `clu.metric_writers`, which cannot be imported without TensorFlow.
    """

    def __init__(self, workdir: str | pathlib.Path, first_step: int = 0):
        """Opens the files; lines after `first_step`, of a run that was cut off, are dropped.

        Only process 0 writes.
        """
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        workdir = pathlib.Path(workdir)
        self._path = workdir / FILE_NAME
        _drop_after(self._path, first_step)
        self._file: IO[str] = self._path.open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first_step + 1, flush_secs=30
        )

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line and one TensorBoard point a scalar."""
        if not self._writes:
            return
        values = {name: float(np.asarray(value)) for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        if not self._writes:
            return
        self._file.close()
        self._board.close()


def _drop_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # a line that a kill cut short
            continue
    write_text(path, "".join(kept))


class Progress:
    """A live line with rate and time left; a line every half minute where no one is watching."""

    def __init__(self, total_steps: int, batch_size: int):
        self._total, self._batch_size = total_steps, batch_size
        self._line = LiveLine(0.2, last=-math.inf)
        self._watcher = concurrent.futures.ThreadPoolExecutor(1)
        self._steps: collections.deque[concurrent.futures.Future[float]] = collections.deque()
        self.start(0)

    def start(self, step: int) -> None:
        """Starts the clock after a step, so that compilation is not in the rate."""
        self._first_step, self._start = step, time.monotonic()
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the reading of a batch: counts the time in which the devices stand still.

        While they still compute the step before, reading costs nothing.
        """
        start = time.monotonic()
        yield
        end = time.monotonic()
        if not self._steps:
            self._waited += end - start
        elif self._steps[-1].done():
            self._waited += max(0.0, end - max(start, self._steps[-1].result()))

    def dispatched(self, result: Any) -> None:
        """Takes what a step will give, when it has been started.

        Waits until the step before has finished: that one runs while the next is started, and no
        more batches than theirs and the one that is read ahead are on the devices.
        """
        self._steps.append(self._watcher.submit(_time_of, result))
        if len(self._steps) > 2:
            self._steps.popleft()
        if len(self._steps) == 2:
            self._steps[0].result()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training, as evaluation."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def rates(self, step: int) -> dict[str, float]:
        """Examples a second and the fraction of time spent waiting for data, since the start."""
        seconds = max(time.monotonic() - self._start - self._paused, 1e-9)
        examples = (step - self._first_step) * self._batch_size
        return {
            "examples_per_second": examples / seconds,
            "data_wait_fraction": min(self._waited / seconds, 1.0),
        }

    def show(self, step: int, loss: float) -> None:
        """Prints the line for a finished step."""
        last = step >= self._total
        # Right after the start there is no rate yet.
        if not last and (step <= self._first_step or not self._line.due()):
            return
        rates = self.rates(step)
        left = (self._total - step) * self._batch_size / max(rates["examples_per_second"], 1e-9)
        self._line.show(
            f"step {step}/{self._total} ({step / self._total:.0%})  loss {loss:.4f}  "
            f"{rates['examples_per_second']:.0f} examples/s  "
            f"data wait {rates['data_wait_fraction']:.0%}  left {duration(left)}",
            stays=last,
        )


def _time_of(result: Any) -> float:
    """When it was there."""
    jax.block_until_ready(result)
    return time.monotonic()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
