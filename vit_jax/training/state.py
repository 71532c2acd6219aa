"""State of training: step, parameters, optimizer state and their moving average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vit_jax.models.definition import ModelDef, Params


@struct.dataclass
class TrainState:
    """Everything that a training step changes.

    The leaves of an abstract state are `ShapeDtypeStruct`s or shardings instead of arrays, and
    within transformations JAX puts placeholders in the place of whole fields.

    Attributes:
        step: number of steps done, int32 scalar.
        params: nested dict of float32 arrays.
        opt_state: state of the optimizer.
        ema: exponential moving average of `params`, or None.
        anchor: an earlier value of `ema`, see `Objective.renews_anchor`, or None.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    anchor: Any = None

    @property
    def eval_params(self) -> Params:
        """Parameters to evaluate: the moving average if there is one."""
        return self.params if self.ema is None else self.ema


def init_state(
    model: ModelDef,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    ema: bool,
    fill: Callable[[Params], Params] = lambda params: params,
    *,
    anchor: bool = False,
) -> TrainState:
    """Creates the state before the first step. Pure: jit it with output shardings.

    Args:
        model: model to initialise.
        optimizer: optimizer, see `make_optimizer`.
        key: PRNG key of the run.
        ema: whether to keep a moving average of the parameters.
        fill: replaces fresh parameters by stored ones, see `Initialization.fill`.
        anchor: whether to keep an earlier moving average as well.
    """
    params = fill(model.init(jax.random.fold_in(key, 0)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy, since donated buffers must not occur twice.
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        anchor=jax.tree.map(jnp.copy, params) if anchor else None,
    )
