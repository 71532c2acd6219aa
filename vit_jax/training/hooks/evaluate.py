"""Evaluations during training."""

import jax

from vit_jax.training.hooks.base import Hook, is_due
from vit_jax.training.run import Run


class Evaluate(Hook):
    """Runs the evaluators of `config.evals` at their interval and after the last step."""

    def after_step(self, run: Run, step: int, metrics: dict[str, jax.Array]) -> None:
        """Evaluates when it is due; `run.evaluation` holds the metrics of this step."""
        run.evaluation = {}
        if step == run.durations.total or is_due(step, run.durations.eval):
            run.settle()
            with run.throughput.paused():
                run.evaluation = run.experiment.suite.run(run.state.eval_params)
            if run.evaluation:
                run.trackers.write_scalars(step, run.evaluation)
