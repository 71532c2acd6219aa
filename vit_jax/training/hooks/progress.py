"""Progress bar and metrics of the steps."""

import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import tqdm

from vit_jax.training.hooks.base import Hook, is_due, scalars
from vit_jax.training.run import Run
from vit_jax.training.throughput import Throughput
from vit_jax.training.variants import Variant

logger = logging.getLogger(__name__)


class Progress(Hook):
    """Shows a progress bar; sends metrics to the trackers every `config.log_steps` steps."""

    def __init__(self, started: float):
        """Declares the hook.

        Args:
            started: `time.monotonic()` at the start of the run.
        """
        self._started = started

    def on_start(self, run: Run) -> None:
        """Starts the clock and wraps the reading of batches with it."""
        self.throughput = run.throughput = Throughput(run.config.batch_size)
        self._first_step, self._compiled = run.step, set[Variant]()
        run.batches = self._timed(run.batches)
        self._bar = tqdm.tqdm(
            total=run.durations.total,
            initial=run.step,
            unit="step",
            disable=jax.process_index() > 0,
            # Where no one is watching, a line every half minute.
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.throughput.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def after_step(self, run: Run, step: int, metrics: dict[str, jax.Array]) -> None:
        """Counts the step; logs it when it is due."""
        self.throughput.dispatched(metrics)
        compiles = run.variant not in self._compiled
        if compiles:
            self._compiled.add(run.variant)
            jax.block_until_ready(metrics)
            self.throughput.restart(step)  # compilation is not in the rate
        if step == self._first_step + 1:
            logger.info("First step after %.1f s.", time.monotonic() - self._started)
        last = step == run.durations.total
        if last or is_due(step, run.config.log_steps):
            run.settle()
            values = {**scalars(metrics), **run.counters()}
            if run.variant.name:  # losses of variants differ: each has a curve of its own
                values[f"loss/{run.variant.name}"] = values["loss"]
            rates = self.throughput.rates(step)
            if not compiles:
                values.update(rates)
                self._bar.set_postfix_str(
                    f"loss {values['loss']:.4f}, {rates['examples_per_second']:.0f} examples/s, "
                    f"data wait {rates['data_wait_fraction']:.0%}",
                    refresh=False,
                )
            run.trackers.write_scalars(step, values)
        self._bar.update()

    def on_end(self, run: Run) -> None:
        """Closes the progress bar."""
        self._bar.close()
