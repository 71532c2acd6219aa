"""The interface of hooks."""

from typing import Any

import jax

from vit_jax.training.run import Run


class Hook:
    """Base class of hooks: work between the steps of a run. Subclasses override what they need.

    A hook of your own has a nested dataclass `Config` with its keys, and takes an instance of it:

        class LogLearningRate(Hook):
            @dataclasses.dataclass(frozen=True, kw_only=True)
            class Config:
                every_steps: int = 100

            def __init__(self, config: Config):
                self.config = config

            def after_step(self, run, step, metrics):
                if step % self.config.every_steps == 0:
                    run.trackers.write_scalars(step, {"my_lr": metrics["lr"]})

        config.hooks.log_lr = {"name": "my_project.hooks:LogLearningRate", "every_steps": 10}

    Hooks run on every process, in the same order.
    """

    def on_start(self, run: Run) -> None:
        """Runs once the state is initialised or restored, before the first step."""

    def after_step(self, run: Run, step: int, metrics: dict[str, jax.Array]) -> None:
        """Runs after a step was dispatched.

        Args:
            run: the run; `run.state` is the state after this step.
            step: steps done.
            metrics: metrics of the step, on the devices. Reading one waits for the step.
        """

    def settle(self) -> None:
        """Runs before the state of the newest step is saved, evaluated or shown.

        A hook that looks at steps with a delay catches up here, and raises if a step has failed.
        """

    def on_end(self, run: Run) -> None:
        """Runs when the run ends, also by an error."""


def is_due(step: int, interval: int) -> bool:
    """Whether a step is a multiple of an interval; 0 is never due."""
    return bool(interval) and step % interval == 0


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The scalar metrics of a step as numbers, without the internal flag `finite`."""
    shown = {k: v for k, v in metrics.items() if k != "finite" and v.ndim == 0}
    return {name: float(value) for name, value in jax.device_get(shown).items()}
