"""Evaluations during training."""

import jax

from vit_jax.training.hooks.base import Hook, is_due
from vit_jax.training.run import Run


class Evaluate(Hook):
    """Runs the evaluators of `config.evals` at their interval and after the last step.

    The last evaluation also stores its predictions, see `vit_jax.evaluators.predictions`.
    """

    def after_step(self, run: Run, step: int, metrics: dict[str, jax.Array]) -> None:
        """Evaluates when it is due; `run.evaluation` holds the metrics of this step."""
        run.evaluation = {}
        last = step == run.durations.total
        if last or is_due(step, run.durations.eval):
            run.settle()
            with run.throughput.paused():
                run.evaluate(save=last)
            if run.evaluation:
                run.trackers.write_scalars(step, run.evaluation)
