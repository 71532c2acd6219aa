"""Placement of activations and the platform, as seen from inside a model.

Models do not depend on a mesh. They name the dimensions of an activation ("batch", "length",
"heads", ...), and the caller maps these names to mesh axes:

    with partitioning.use(constraint=to_mesh, platform="tpu"):
        compiled = jax.jit(step).lower(...)

`constrain` is called where sharding propagation alone is not enough. Outside of `use` it returns
its argument unchanged.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from jax.experimental.layout import Layout, with_layout_constraint

# Takes an activation and the logical name of each of its dimensions.
Constraint = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar(
    "constraint", default=None
)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of an activation.

    Args:
        x: activation.
        *axes: logical name of each dimension of `x`; None leaves a dimension unconstrained.

    Returns:
        The activation, constrained if the model is traced within `use`.
    """
    constraint = _constraint.get()
    return x if constraint is None else constraint(x, axes)


def platform() -> str:
    """Platform that the model is traced for: "cpu", "gpu" or "tpu".

    The platform given to `use`, or else JAX's default backend. Ahead-of-time compilation for a TPU
    on a CPU host traces the TPU's implementations this way.
    """
    return _platform.get() or jax.default_backend()


def laid_out(x: jax.Array, major_to_minor: tuple[int, ...] | None = None) -> jax.Array:
    """Constrains the memory layout of an activation on TPUs.

    Without a constraint XLA makes the batch the second-minor dimension where its size divides the
    tile better than the number of tokens, and attention then copies its operands.

    Args:
        x: activation.
        major_to_minor: dimensions from major to minor; by default their own order.

    Returns:
        The activation; unchanged on other platforms.
    """
    if platform() != "tpu":
        return x
    return with_layout_constraint(x, Layout(major_to_minor or tuple(range(x.ndim))))


@contextlib.contextmanager
def use(constraint: Constraint | None = None, platform: str | None = None) -> Iterator[None]:
    """Sets the constraint and the platform of all models traced within the block.

    Args:
        constraint: function that `constrain` calls; None for no constraints.
        platform: value of `platform()`; None for JAX's default backend.
    """
    tokens = _constraint.set(constraint), _platform.set(platform)
    try:
        yield
    finally:
        _constraint.reset(tokens[0])
        _platform.reset(tokens[1])
