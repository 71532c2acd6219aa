"""Activation constraints by logical names. The model says what a dimension is; who runs it says
where it lives.

A model calls `constrain(x, "batch", "length", "embed")` where propagation alone goes wrong; outside
`use` that does nothing, so that models need no mesh.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

Constraint = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]

_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar(
    "constraint", default=None
)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an activation by the logical name of each dimension; None leaves one open."""
    constraint = _constraint.get()
    return x if constraint is None else constraint(x, axes)


@contextlib.contextmanager
def use(constraint: Constraint) -> Iterator[None]:
    """Applies a constraint to all models traced within the block."""
    token = _constraint.set(constraint)
    try:
        yield
    finally:
        _constraint.reset(token)
