"""Optimizer and learning-rate schedule from `config.optim`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vit_jax.errors import UserError, lookup
from vit_jax.models.functional import ModelDef

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


def make_optimizer(
    config: Any, schedule: Schedule, model: ModelDef
) -> optax.GradientTransformation:
    """The optimizer of `config.optim`, with optional clipping of the global gradient norm.

    Args:
        config: `config.optim`.
        schedule: step -> learning rate.
        model: says which parameters weight decay applies to, and which dimensions a matrix has.
    """
    build = lookup(OPTIMIZERS, config.name, "config.optim.name,")
    clip = [optax.clip_by_global_norm(config.grad_clip_norm)] if config.grad_clip_norm else []
    return optax.chain(*clip, build(config, schedule, model))


def _adamw(config: Any, schedule: Schedule, model: ModelDef) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019)."""
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=model.metadata("decay"),
    )


def _muon(config: Any, schedule: Schedule, model: ModelDef) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for matrices, Adam with Nesterov momentum for the rest.

    Updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training",
    section 2.2), so that learning rate and decay carry over.
    """
    return contrib.muon(
        schedule,
        weight_decay=config.weight_decay,
        weight_decay_mask=model.metadata("decay"),
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=jax.tree.map(
            matrix_dimensions,
            model.metadata("axes"),
            model.metadata("decay"),
            is_leaf=lambda x: isinstance(x, tuple),
        ),
    )


OPTIMIZERS: dict[str, Callable[[Any, Schedule, ModelDef], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "muon": _muon,
}


def matrix_dimensions(axes: tuple[str, ...], decay: bool) -> contrib.MuonDimensionNumbers | None:
    """Which dimensions of a parameter are a matrix's inputs and outputs; None for no matrix.

    Layers of a stack, and queries, keys and values, are matrices of their own.

    Args:
        axes: logical name of each dimension.
        decay: whether weight decay applies, as it does to matrices alone.
    """
    own = [i for i, name in enumerate(axes) if name not in ("layers", "qkv")]
    if not decay or len(own) < 2:
        return None
    # Into the residual stream, as convolutions: all but the last are inputs. Out of it: the first.
    split = len(own) - 1 if axes[own[-1]] == "embed" else 1
    return contrib.MuonDimensionNumbers(tuple(own[:split]), tuple(own[split:]))


def project(params: Any, bounds: Any) -> Any:
    """Clips each parameter to the interval its model declares, None for none."""
    return jax.tree.map(
        lambda bound, p: p if bound is None else jnp.clip(p, *bound),
        bounds,
        params,
        is_leaf=lambda x: x is None or isinstance(x, tuple),
    )
