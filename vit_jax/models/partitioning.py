"""The devices of a model, as seen from inside it: platform, and placement of activations.

Models do not depend on a mesh. They name the dimensions of an activation ("batch", "length",
"heads", ...), and the caller maps these names to mesh axes:

    with partitioning.use(placement, platform="tpu"):
        compiled = jax.jit(step).lower(...)

`constrain` is called where sharding propagation alone is not enough, `per_shard` around kernels,
which it does not know. Outside of `use` neither does anything.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
from jax.experimental.layout import Layout, with_layout_constraint

AUTO = "auto"


@runtime_checkable
class Placement(Protocol):
    """Maps logical dimensions of activations to devices."""

    def constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Constrains the sharding of an activation, see `partitioning.constrain`."""

    def shards(self, axis: str) -> int:
        """Number of parts that a logical dimension is split into."""

    def per_shard(self, function: Callable, in_axes: Any, out_axes: Any) -> Callable:
        """Applies a function to the shards of each device, see `partitioning.per_shard`."""


@dataclasses.dataclass(frozen=True)
class _Context:
    placement: Placement | None = None
    platform: str | None = None
    device_kind: str | None = None
    attention: str = AUTO
    interpret: bool = False


_DEFAULT = _Context()
_context: contextvars.ContextVar[_Context] = contextvars.ContextVar("context", default=_DEFAULT)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of an activation.

    Args:
        x: activation.
        *axes: logical name of each dimension of `x`; None leaves a dimension unconstrained.

    Returns:
        The activation, constrained if the model is traced within `use`.
    """
    placement = _context.get().placement
    return x if placement is None else placement.constrain(x, axes)


def shards(axis: str) -> int:
    """Number of parts that a logical dimension of activations is split into.

    Args:
        axis: logical name of the dimension.
    """
    placement = _context.get().placement
    return 1 if placement is None else placement.shards(axis)


def split_axis(axis: str, size: int) -> str | None:
    """Logical name of a dimension, if devices can split it evenly; else None.

    Args:
        axis: logical name of the dimension.
        size: its size.
    """
    return axis if size % shards(axis) == 0 else None


def per_shard(function: Callable, in_axes: Any, out_axes: Any) -> Callable:
    """Applies a function to the shards of each device, without communication.

    Args:
        function: function of arrays.
        in_axes: a tree of `PartitionSpec`s of logical names for each argument. A name splits its
            dimension, which has to be a multiple of `shards(name)`.
        out_axes: the same for the result.

    Returns:
        The function of whole arrays.
    """
    placement = _context.get().placement
    return function if placement is None else placement.per_shard(function, in_axes, out_axes)


def platform() -> str:
    """Platform that the model is traced for: "cpu", "gpu" or "tpu".

    The platform given to `use`, or else JAX's default backend. Ahead-of-time compilation for a TPU
    on a CPU host traces the TPU's implementations this way.
    """
    return _context.get().platform or jax.default_backend()


def device_kind() -> str:
    """Kind of the devices that the model is traced for, as "TPU v5 lite".

    The kind given to `use`, or else that of JAX's first device.
    """
    return _context.get().device_kind or jax.devices()[0].device_kind


def attention_implementation() -> str:
    """Implementation of attention that `use` asks for; `AUTO` for the choice by platform."""
    return _context.get().attention


def interpret_kernels() -> bool:
    """Whether the kernels of TPUs run as ordinary JAX operations: off TPUs, or as `use` asks."""
    return _context.get().interpret or platform() != "tpu"


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
def use(
    placement: Placement | None = None,
    platform: str | None = None,
    *,
    device_kind: str | None = None,
    attention: str = AUTO,
    interpret: bool = False,
) -> Iterator[None]:
    """Sets the devices of all models traced within the block.

    Args:
        placement: maps logical dimensions to devices; None for a single device.
        platform: value of `platform()`; None for JAX's default backend.
        device_kind: value of `device_kind()`; None for JAX's first device.
        attention: value of `attention_implementation()`.
        interpret: whether kernels are interpreted although the platform is "tpu", for tests.
    """
    token = _context.set(_Context(placement, platform, device_kind, attention, interpret))
    try:
        yield
    finally:
        _context.reset(token)
