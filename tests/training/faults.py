"""Components that disturb a run, named in the configs of the tests."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp

from vit_jax.objectives.contrastive.objective import Contrastive
from vit_jax.training.hooks.base import Hook
from vit_jax.training.run import Run


class Signal(Hook):
    """Sends a signal to this process after a step."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the hook."""

        step: int
        number: int = int(signal.SIGTERM)

    def __init__(self, config: Config):
        self.config = config

    def after_step(self, run: Run, step: int, metrics: dict[str, jax.Array]) -> None:
        if step == self.config.step:
            os.kill(os.getpid(), self.config.number)


class Killed(Exception):
    """Stands for kill -9."""


class Kill(Signal):
    """Ends the run at once after a step; nothing is saved."""

    def after_step(self, run: Run, step: int, metrics: dict[str, jax.Array]) -> None:
        if step == self.config.step:
            raise Killed


class Poisoned(Contrastive):
    """Contrastive loss that is NaN for one batch, recognised by the sum of its pixels."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Contrastive.Config):
        """Keys of the objective."""

        pixel_sum: int

    def __call__(self, model, batch, rng, *constants):
        loss, metrics = super().__call__(model, batch, rng, *constants)
        bad = jnp.sum(batch["image"].astype(jnp.int32)) == self.config.pixel_sum
        return jnp.where(bad, jnp.nan, 1.0) * loss, metrics
