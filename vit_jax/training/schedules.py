"""Learning-rate schedules: linear warm-up, a decay, and an optional linear cooldown."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import optax

from vit_jax.components import Registry
from vit_jax.errors import UserError

EMA_SCHEDULES = ("warmup", "cosine")
# Step -> learning rate, or another number that changes.
Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Durations:
    """Lengths of a run in steps; 0 where there is none.

    Attributes:
        total: length of the run.
        warmup: warm-up of the learning rate.
        cooldown: final decay of the learning rate to 0.
        eval: interval of evaluations.
        checkpoint: interval of checkpoints.
    """

    total: int
    warmup: int = 0
    cooldown: int = 0
    eval: int = 0
    checkpoint: int = 0


@runtime_checkable
class Decay(Protocol):
    """A dataclass of a decay's keys. Its method `build` makes the schedule after the warm-up."""

    def build(self, lr: float, min_lr: float, steps: int) -> Schedule:
        """Builds the schedule.

        Args:
            lr: learning rate at step 0.
            min_lr: lower bound of the learning rate.
            steps: number of steps after the warm-up.
        """
        ...


SCHEDULES = Registry(
    "schedule",
    {
        "cosine": "vit_jax.training.schedules:Cosine",
        "linear": "vit_jax.training.schedules:Linear",
        "rsqrt": "vit_jax.training.schedules:ReciprocalSquareRoot",
        "constant": "vit_jax.training.schedules:Constant",
    },
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine to the minimum (Loshchilov and Hutter 2017)."""

    def build(self, lr: float, min_lr: float, steps: int) -> Schedule:
        """Builds the schedule, see `Decay.build`."""
        return optax.cosine_decay_schedule(lr, steps, min_lr / lr if lr else 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """A line to the minimum."""

    def build(self, lr: float, min_lr: float, steps: int) -> Schedule:
        """Builds the schedule, see `Decay.build`."""
        return optax.linear_schedule(lr, min_lr, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReciprocalSquareRoot:
    """Reciprocal square root (Zhai et al. 2022, "Scaling Vision Transformers", section 3.5).

    It does not depend on the length of the run, so a run can be extended from any checkpoint before
    its cooldown.

    Attributes:
        rsqrt_timescale: number of steps in which the learning rate falls by the root of two.
    """

    rsqrt_timescale: int = 10_000

    def __post_init__(self) -> None:
        if self.rsqrt_timescale <= 0:
            raise UserError(
                f"config.optim.rsqrt_timescale={self.rsqrt_timescale}: expected a positive number"
            )

    def build(self, lr: float, min_lr: float, steps: int) -> Schedule:
        """Builds the schedule, see `Decay.build`."""
        del steps
        timescale = self.rsqrt_timescale
        return lambda step: jnp.maximum(lr / jnp.sqrt((step + timescale) / timescale), min_lr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The peak learning rate until the end or the cooldown."""

    def build(self, lr: float, min_lr: float, steps: int) -> Schedule:
        """Builds the schedule, see `Decay.build`."""
        del min_lr, steps
        return optax.constant_schedule(lr)


def ema_schedule(name: str, decay: float, total: int) -> Schedule:
    """Step -> decay of the moving average of the parameters.

    Args:
        name: "warmup", at most (1 + step) / (10 + step), so that the average forgets the initial
            parameters; or "cosine", from `decay` to 1 along half a cosine, as the teachers of BYOL
            and DINO.
        decay: decay per step.
        total: length of the run, steps.
    """
    if name == "warmup":
        return lambda step: jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    rate = optax.cosine_decay_schedule(1 - decay, total)
    return lambda step: 1 - rate(step)


def warmup_decay_cooldown(
    decay: Decay, *, lr: float, min_lr: float, warmup: int, total: int, cooldown: int
) -> Schedule:
    """Linear warm-up from 0, a decay, and a linear cooldown to 0.

    Args:
        decay: schedule between warm-up and cooldown.
        lr: peak learning rate.
        min_lr: lower bound of the decay.
        warmup: length of the warm-up, steps.
        total: length of the run, warm-up and cooldown included, steps.
        cooldown: last steps of the run, in which the schedule is multiplied by a line to 0.

    Raises:
        UserError: lengths that do not fit the run, `min_lr` out of its range, or a `decay` that is
            no schedule.
    """
    if not hasattr(decay, "build"):
        raise UserError(
            "config.optim.schedule: expected a class with the method build(lr, min_lr, steps), "
            f"found {type(decay).__name__}"
        )
    if warmup >= total:
        raise UserError(f"the warm-up of {warmup} steps is not shorter than the run of {total}")
    if warmup + cooldown > total:
        raise UserError(
            f"warm-up and cooldown of {warmup} + {cooldown} steps are longer than the run of "
            f"{total}"
        )
    if not 0 <= min_lr <= lr:
        raise UserError(f"config.optim.min_lr={min_lr}: expected a number from 0 to lr={lr}")
    schedule = decay.build(lr, min_lr, total - warmup)
    if warmup:
        rise = optax.linear_schedule(0.0, lr, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])
    if not cooldown:
        return schedule
    return lambda step: schedule(step) * jnp.clip((total - step) / cooldown, 0, 1)
