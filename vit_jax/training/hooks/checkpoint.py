"""Checkpoints during training, and the stop that a signal asks for."""

from collections.abc import Callable

import jax

from vit_jax.errors import Interrupted
from vit_jax.training.hooks.base import Hook, is_due
from vit_jax.training.run import Run


class Checkpoint(Hook):
    """Saves the state at its interval, when it is the best, after the last step and on a signal."""

    def __init__(self, stop: Callable[[], bool]):
        """Declares the hook.

        Args:
            stop: whether the run is asked to stop after this step, see `preemption.stop_signals`.
        """
        self._stop = stop

    def after_step(self, run: Run, step: int, metrics: dict[str, jax.Array]) -> None:
        """Saves when it is due.

        Raises:
            Interrupted: the run was asked to stop; its state is saved.
        """
        run.checkpoints.check()
        last, stopping = step == run.durations.total, self._stop()
        due = last or stopping or is_due(step, run.durations.checkpoint)
        if due or run.checkpoints.is_best(run.evaluation):
            run.settle()
            run.save(urgent=last or stopping)
        if stopping and not last:
            raise Interrupted(
                f"stopped and saved at step {step} of {run.durations.total}; the same command "
                "continues from there"
            )
