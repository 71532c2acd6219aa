"""Hooks of the project."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import optax

from vit_jax.training.hooks.base import Hook, is_due

if TYPE_CHECKING:
    from vit_jax.training.run import Run


class ParameterNorm(Hook):
    """Records the global norm of the parameters as the metric `parameter_norm`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the hook.

        Attributes:
            every_steps: interval, steps.
        """

        every_steps: int = 100

    def __init__(self, config: Config) -> None:
        """Takes the keys of the hook."""
        self.config = config
        self._norm = jax.jit(optax.global_norm)

    def after_step(self, run: "Run", step: int, metrics: dict[str, jax.Array]) -> None:
        """Writes the norm when it is due."""
        if is_due(step, self.config.every_steps):
            run.trackers.write_scalars(step, {"parameter_norm": self._norm(run.state.params)})
