"""Learning rates over the steps of a run, from `config.optim`."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from vit_jax.errors import UserError, lookup

# Step -> learning rate.
Schedule = Callable[[Any], Any]


def make_schedule(
    config: Any, *, warmup_steps: int, total_steps: int, cooldown_steps: int = 0
) -> Schedule:
    """Linear warm-up from 0, the chosen decay, and where it is asked for a linear cooldown to 0.

    Args:
        config: `config.optim`: schedule, lr, min_lr, rsqrt_timescale.
        warmup_steps: length of the warm-up.
        total_steps: length of the run, warm-up and cooldown included.
        cooldown_steps: last steps of the run, in which the schedule is multiplied by a line to 0.

    Raises:
        UserError: unknown schedule, lengths that do not fit the run, or a wrong `min_lr`.
    """
    decay = lookup(SCHEDULES, config.schedule, "config.optim.schedule,")
    if warmup_steps >= total_steps:
        raise UserError(
            f"the warm-up of {warmup_steps} steps is not shorter than the run of {total_steps}"
        )
    if warmup_steps + cooldown_steps > total_steps:
        raise UserError(
            f"warm-up and cooldown of {warmup_steps} + {cooldown_steps} steps are longer than the "
            f"run of {total_steps}"
        )
    if not 0 <= config.min_lr <= config.lr:
        raise UserError(
            f"config.optim.min_lr={config.min_lr}: expected a number from 0 to lr={config.lr}"
        )
    schedule = decay(config, total_steps - warmup_steps)
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, config.lr, warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    if not cooldown_steps:
        return schedule
    return lambda step: schedule(step) * jnp.clip((total_steps - step) / cooldown_steps, 0, 1)


def _cosine(config: Any, steps: int) -> Schedule:
    """Half a cosine (Loshchilov and Hutter 2017)."""
    alpha = config.min_lr / config.lr if config.lr else 0.0
    return optax.cosine_decay_schedule(config.lr, steps, alpha)


def _linear(config: Any, steps: int) -> Schedule:
    return optax.linear_schedule(config.lr, config.min_lr, steps)


def _rsqrt(config: Any, steps: int) -> Schedule:
    """Reciprocal square root (Zhai et al. 2022, "Scaling Vision Transformers", section 3.5).

    It knows nothing of the run's length, so that a run can go on from before its cooldown.
    """
    del steps
    timescale = config.rsqrt_timescale
    if timescale <= 0:
        raise UserError(f"config.optim.rsqrt_timescale={timescale}: expected a positive number")
    return lambda step: jnp.maximum(
        config.lr / jnp.sqrt((step + timescale) / timescale), config.min_lr
    )


def _constant(config: Any, steps: int) -> Schedule:
    del steps
    return optax.constant_schedule(config.lr)


SCHEDULES: dict[str, Callable[[Any, int], Schedule]] = {
    "cosine": _cosine,
    "linear": _linear,
    "rsqrt": _rsqrt,
    "constant": _constant,
}
