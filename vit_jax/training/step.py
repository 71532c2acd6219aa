"""The training step: a pure function of state and batch, jitted over the global mesh."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vit_jax.models.definition import ModelDef, Params
from vit_jax.training.freezing import keep_frozen, stop_frozen
from vit_jax.training.optimizers import project
from vit_jax.training.schedules import Schedule

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Metrics]]


@struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
        step: steps done, int32 scalar.
        params: nested dict of float32 arrays.
        opt_state: the optimizer's.
        ema: exponential moving average of `params`, or None.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None

    @property
    def eval_params(self) -> Params:
        """What is evaluated: the average where there is one."""
        return self.params if self.ema is None else self.ema


def init_state(
    model: ModelDef,
    optimizer: optax.GradientTransformation,
    seed: int,
    ema: bool,
    fill: Callable[[Params], Params] = lambda params: params,
) -> TrainState:
    """First state. Pure: jit it with output shardings to create it in place.

    Args:
        model: the model.
        optimizer: gradient transformation.
        seed: of the parameters.
        ema: whether there is an average of them.
        fill: puts weights from elsewhere in the place of fresh parameters.
    """
    params = fill(model.init(jax.random.fold_in(jax.random.key(seed), 0)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy: donated buffers must not be the same array twice.
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )


def make_train_step(
    model: ModelDef,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    seed: int,
    ema_decay: float,
    frozen: Any = None,
    skip_non_finite: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the step.

    Args:
        model: the model.
        loss_fn: objective, `loss(model, batch, rng, *constants) -> (scalar, metrics)`.
        optimizer: gradient transformation.
        schedule: step -> learning rate, for the metrics alone.
        seed: of dropout, patch dropout and stochastic depth.
        ema_decay: decay of the average of the weights; 0 for none.
        frozen: tree of bool, which parameters stay as they are; None for none.
        skip_non_finite: whether a step whose loss or gradients are not finite leaves everything but
            the step's number as it was.

    Returns:
        (state, batch, *constants) -> (state, metrics), to be jitted with the state donated;
        constants are what the objective reads beside the batch: a teacher's parameters. Beside
        scalars the metrics hold `finite`, bool, and `per_layer_grad_norms`, float32
        (len(per_layer_names(model)),).
    """
    if frozen is not None:
        model = model.with_frozen_statistics(frozen)
    bounds, axes = model.metadata("bounds"), model.metadata("axes")

    def train_step(
        state: TrainState, batch: Batch, *constants: Params
    ) -> tuple[TrainState, Metrics]:
        # Keys depend on seed and step alone: a resumed run draws what the first one would have.
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)

        def loss_of(params: Params) -> tuple[jax.Array, tuple[Metrics, Params]]:
            module = model.bind(stop_frozen(params, frozen))
            loss, metrics = loss_fn(module, batch, rng, *constants)
            return loss, (metrics, model.statistics(module))

        (loss, (metrics, statistics)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = project(optax.apply_updates(state.params, updates), bounds)
        params = model.with_statistics(params, statistics)
        params = keep_frozen(params, state.params, frozen)
        ema = state.ema
        if ema is not None:
            # The first steps weigh more (as in Adam), else the average would remember the
            # random start for 1 / (1 - decay) steps.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update(params, ema, 1.0 - decay)
        norms = layer_norms(grads, axes)
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
        after = TrainState(state.step + 1, params, opt_state, ema)
        if skip_non_finite:
            same = dataclasses.replace(state, step=after.step)
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, same)
        return after, metrics

    return train_step


def layer_norms(grads: Params, axes: Params) -> jax.Array:
    """Euclidean norm of each parameter's gradient, of each layer on its own in a stack.

    Args:
        grads: like the parameters.
        axes: logical name of each dimension, see `ModelDef.metadata`.

    Returns:
        float32, in the order of `per_layer_names`.
    """

    def squares(names: tuple[str, ...], grad: jax.Array) -> jax.Array:
        within = tuple(i for i, name in enumerate(names) if name != "layers")
        return jnp.sum(jnp.square(grad.astype(jnp.float32)), axis=within).reshape(-1)

    parts = jax.tree.map(squares, axes, grads, is_leaf=lambda x: isinstance(x, tuple))
    return jnp.sqrt(jnp.concatenate(jax.tree.leaves(parts)))


def per_layer_names(model: ModelDef) -> list[str]:
    """Names of `layer_norms`: the parameter's path, in a stack with the layer's number."""
    found = []
    axes = jax.tree.leaves(model.metadata("axes"), is_leaf=lambda x: isinstance(x, tuple))
    shapes = jax.tree_util.tree_leaves_with_path(model.shapes())
    for (path, x), names in zip(shapes, axes, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        count = math.prod(n for n, axis in zip(x.shape, names, strict=True) if axis == "layers")
        found += [f"{name}[{i}]" for i in range(count)] if "layers" in names else [name]
    return found
