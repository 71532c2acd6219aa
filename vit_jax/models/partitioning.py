"""What a model is told of the machine: where activations live, and which kind of device it is.

The model says what a dimension is by a logical name; who runs it says where it lives.

A model calls `constrain(x, "batch", "length", "embed")` where propagation alone goes wrong; outside
`use` that does nothing, so that models need no mesh.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from jax.experimental.layout import Layout, with_layout_constraint

Constraint = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar(
    "constraint", default=None
)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an activation by the logical name of each dimension; None leaves one open."""
    constraint = _constraint.get()
    return x if constraint is None else constraint(x, axes)


def platform() -> str:
    """The kind of device that a model is traced for, "cpu", "gpu" or "tpu"."""
    return _platform.get() or jax.default_backend()


def laid_out(x: jax.Array, major_to_minor: tuple[int, ...] | None = None) -> jax.Array:
    """Has a TPU lay out an activation with its dimensions in this order, by default their own.

    Left to itself, XLA puts the batch second to last where it divides better than the tokens, and
    attention copies its operands back. Elsewhere there is nothing to do.
    """
    if platform() != "tpu":
        return x
    return with_layout_constraint(x, Layout(major_to_minor or tuple(range(x.ndim))))


@contextlib.contextmanager
def use(constraint: Constraint | None = None, platform: str | None = None) -> Iterator[None]:
    """Applies to all models traced within the block.

    Args:
        constraint: for `constrain`.
        platform: for `platform`; None for JAX's default.
    """
    tokens = _constraint.set(constraint), _platform.set(platform)
    try:
        yield
    finally:
        _constraint.reset(tokens[0])
        _platform.reset(tokens[1])
