"""Optimizer and learning-rate schedule from `config.optim`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.errors import UserError, lookup

Schedule = Callable[[Any], Any]

SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {
    "cosine": lambda lr, steps: optax.cosine_decay_schedule(lr, steps),
    "linear": lambda lr, steps: optax.linear_schedule(lr, 0.0, steps),
    "constant": lambda lr, steps: optax.constant_schedule(lr),
}


def make_schedule(name: str, *, lr: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Linear warm-up from 0, then decay that ends at `total_steps`.

    Args:
        name: a key of `SCHEDULES`.
        lr: peak learning rate.
        warmup_steps: length of the warm-up.
        total_steps: length of the run, warm-up included.
    """
    if warmup_steps >= total_steps:
        raise UserError(
            f"the warm-up of {warmup_steps} steps is not shorter than the run of {total_steps}"
        )
    decay = lookup(SCHEDULES, name, "schedule")(lr, total_steps - warmup_steps)
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, lr, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(config: Any, schedule: Schedule, decay: Any) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) with optional clipping of the global gradient norm.

    Args:
        config: `config.optim`.
        schedule: step -> learning rate.
        decay: tree of booleans like the parameters: which of them weight decay applies to.
    """
    clip = [optax.clip_by_global_norm(config.grad_clip_norm)] if config.grad_clip_norm else []
    return optax.chain(
        *clip,
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay,
        ),
    )


def project(params: Any, bounds: Any) -> Any:
    """Clips each parameter to the interval its model declares, None for none."""
    return jax.tree.map(
        lambda bound, p: p if bound is None else jnp.clip(p, *bound),
        bounds,
        params,
        is_leaf=lambda x: x is None or isinstance(x, tuple),
    )
