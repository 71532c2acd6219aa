"""The training step: a pure function of state and batch, to be jitted over the global mesh."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from vit_jax.models.definition import ModelDef, Params
from vit_jax.objectives import Batch, Metrics
from vit_jax.objectives.base import PROGRESS
from vit_jax.training.freezing import keep_frozen, stop_frozen
from vit_jax.training.schedules import Schedule
from vit_jax.training.state import TrainState

# (model, batch, rng, *constants) -> (loss, metrics); see `objectives.Objective`.
LossFn = Callable[..., tuple[jax.Array, Metrics]]
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def make_train_step(
    model: ModelDef,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    seed: int,
    total_steps: int,
    ema_decay: Schedule,
    frozen: Any = None,
    skip_non_finite: bool = False,
) -> TrainStep:
    """Builds the training step.

    Args:
        model: model to train.
        loss_fn: an objective, or any function with the signature of `Objective.__call__`.
        optimizer: optimizer, see `make_optimizer`.
        schedule: step -> learning rate, for the metrics.
        seed: PRNG seed for augmentation, patch dropout and stochastic depth.
        total_steps: length of training, to which `objectives.base.PROGRESS` is relative.
        ema_decay: step -> decay of the moving average of the parameters, where the state has one.
        frozen: tree of bool like the parameters, those that are not trained; None: all are.
        skip_non_finite: whether a step with a non-finite loss or gradient leaves everything
            unchanged except the number of the step.

    Returns:
        (state, batch, *constants) -> (state, metrics), to be jitted with the state donated.
        `constants` are the parameters of other models that the objective reads; what it reads of
        the state comes before them. Besides scalars, the metrics hold `finite`, bool, and
        `per_layer_grad_norms`, float32 (len(per_layer_names(model)),).
    """
    if frozen is not None:
        model = model.with_frozen_statistics(frozen)
    reads_state = getattr(loss_fn, "reads_state", ())
    bounds, axes = model.metadata("bounds"), model.metadata("axes")

    def train_step(
        state: TrainState, batch: Batch, *constants: Params
    ) -> tuple[TrainState, Metrics]:
        # Keys depend on seed and step only, so a resumed run draws the same numbers.
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        batch = {**batch, PROGRESS: state.step / jnp.float32(total_steps)}
        if "anchor" in reads_state:
            renewed = loss_fn.renews_anchor(state.step, total_steps)  # type: ignore[attr-defined]
            state = dataclasses.replace(state, anchor=_select(renewed, state.ema, state.anchor))
        constants = (*(getattr(state, part) for part in reads_state), *constants)

        def loss_of(params: Params) -> tuple[jax.Array, tuple[Metrics, Params]]:
            module = model.bind(stop_frozen(params, frozen))
            loss, metrics = loss_fn(module, batch, rng, *constants)
            return loss, (metrics, model.statistics(module))

        (loss, (metrics, statistics)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = clip_to_bounds(optax.apply_updates(state.params, updates), bounds)
        params = model.with_statistics(params, statistics)
        params = keep_frozen(params, state.params, frozen)
        norms = per_layer_grad_norms(grads, axes)
        grad_norm = jnp.sqrt(jnp.sum(norms**2))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        metrics = {
            "loss": loss,
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": grad_norm,
            **metrics,
            "finite": finite,
            "per_layer_grad_norms": norms,
        }
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1.0 - ema_decay(state.step))
        after = TrainState(state.step + 1, params, opt_state, ema, state.anchor)
        if skip_non_finite:
            same = dataclasses.replace(state, step=after.step)
            after = _select(finite, after, same)
        return after, metrics

    return train_step


def _select(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def clip_to_bounds(params: Params, bounds: Params) -> Params:
    """Clips each parameter to the interval that its model declares.

    Args:
        params: parameters.
        bounds: (lower, upper) for each parameter, or None.
    """
    return jax.tree.map(
        lambda bound, p: p if bound is None else jnp.clip(p, *bound),
        bounds,
        params,
        is_leaf=lambda x: x is None or isinstance(x, tuple),
    )


def per_layer_grad_norms(grads: Params, axes: Params) -> jax.Array:
    """Euclidean norm of each parameter's gradient, separately for each layer of a stack.

    Args:
        grads: tree like the parameters.
        axes: logical name of each dimension, see `ModelDef.metadata`.

    Returns:
        float32 (norms,), in the order of `per_layer_names`.
    """

    def squares(names: tuple[str, ...], grad: jax.Array) -> jax.Array:
        within = tuple(i for i, name in enumerate(names) if name != "layers")
        return jnp.sum(jnp.square(grad.astype(jnp.float32)), axis=within).reshape(-1)

    parts = jax.tree.map(squares, axes, grads, is_leaf=lambda x: isinstance(x, tuple))
    return jnp.sqrt(jnp.concatenate(jax.tree.leaves(parts)))


def per_layer_names(model: ModelDef) -> list[str]:
    """Names of `per_layer_grad_norms`: parameter paths, with the layer's index within a stack."""
    found = []
    axes = flatten_dict(model.metadata("axes"))
    for path, x in sorted(flatten_dict(model.shapes()).items()):  # the order of JAX's leaves
        name = "/".join(path)
        count = math.prod(
            n for n, axis in zip(x.shape, axes[path], strict=True) if axis == "layers"
        )
        found += [f"{name}[{i}]" for i in range(count)] if "layers" in axes[path] else [name]
    return found
