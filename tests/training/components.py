"""Hooks and an objective that tests name in configs by dotted paths."""

import dataclasses
import os
import time

import jax
import jax.numpy as jnp

from vit_jax.objectives.contrastive.objective import Contrastive
from vit_jax.training.hooks.base import Hook


class SendSignal(Hook):
    """Sends a signal to this process after a step."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the hook.

        Attributes:
            step: step after which the signal is sent; 0: before the first step.
            signal: number of the signal.
            process: index of the process; None: every process.
            to_parent: whether the parent process, as a launcher, receives it.
        """

        step: int
        signal: int
        process: int | None = None
        to_parent: bool = False

    def __init__(self, config: Config):
        self.config = config

    def on_start(self, run):
        self._send_at(run, 0)

    def after_step(self, run, step, metrics):
        self._send_at(run, step)

    def _send_at(self, run, step):
        if step == self.config.step and self.config.process in (None, jax.process_index()):
            run.checkpoints.wait()
            os.kill(os.getppid() if self.config.to_parent else os.getpid(), self.config.signal)
            time.sleep(2 * self.config.to_parent)  # a launcher passes it on meanwhile


class Crash(Hook):
    """Raises KeyboardInterrupt after a step, before anything else can be saved."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the hook.

        Attributes:
            step: step after which the run crashes.
        """

        step: int

    def __init__(self, config: Config):
        self.config = config

    def after_step(self, run, step, metrics):
        if step == self.config.step:
            raise KeyboardInterrupt


class PoisonedContrastive(Contrastive):
    """The contrastive loss, which is NaN for one batch."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Contrastive.Config):
        """Keys of the objective.

        Attributes:
            poison: sum of the pixels of the batch whose loss is NaN.
        """

        poison: int = -1

    def __call__(self, model, batch, rng, *constants):
        loss, metrics = super().__call__(model, batch, rng, *constants)
        is_bad = jnp.sum(batch["image"].astype(jnp.int32)) == self.config.poison
        return jnp.where(is_bad, jnp.nan, 1.0) * loss, metrics


def pixel_sum(batch: dict[str, jax.Array]) -> int:
    """Sum of the pixels of a batch, which identifies it."""
    return int(batch["image"].astype("int64").sum())
