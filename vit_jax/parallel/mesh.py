"""One global mesh over all devices of all processes and slices."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError

# Replicas; parameters split; parameters split within a layer's matmuls.
AXES = ("data", "fsdp", "tensor")
# The batch is split over these two, tensor-parallel devices work on the same examples.
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list[Any] | None = None
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
        data: replicas; -1 takes what the other axes leave. It alone may cross slices, since
            replicas exchange the least.
        fsdp: devices that share the parameters of a replica.
        tensor: devices that share a layer's heads and hidden units.
        devices: all devices by default.

    Raises:
        UserError: sizes that the devices cannot give.
    """
    devices = jax.devices() if devices is None else devices
    inner = fsdp * tensor
    if min(fsdp, tensor) < 1 or data < -1 or data == 0:
        raise UserError(f"config.mesh: data={data}, fsdp={fsdp}, tensor={tensor}: not a mesh")
    if data == -1:
        if len(devices) % inner:
            raise UserError(
                f"config.mesh: fsdp={fsdp} x tensor={tensor} does not divide {len(devices)} devices"
            )
        data = len(devices) // inner
    shape = (data, fsdp, tensor)
    if math.prod(shape) > len(devices):
        raise UserError(
            f"config.mesh: data={data} x fsdp={fsdp} x tensor={tensor} is "
            f"{math.prod(shape)}, there are {len(devices)} devices"
        )
    grid = _arrange(devices[: math.prod(shape)], shape)
    # Auto axes: from JAX 0.12 on the default of `jax.make_mesh` is explicit sharding.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices: list[Any], shape: tuple[int, int, int]) -> np.ndarray:
    """Neighbours on the interconnect become neighbours on the inner axes."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1:
        data, fsdp, tensor = shape
        if data % len(slices):
            raise UserError(
                f"config.mesh.data={data} is not a multiple of the {len(slices)} slices"
            )
        return mesh_utils.create_hybrid_device_mesh(
            (data // len(slices), fsdp, tensor), (len(slices), 1, 1), devices
        )
    return mesh_utils.create_device_mesh(shape, devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension is split over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Microbatches that the batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, parts: int, key: str, what: str = "devices") -> None:
    """Refuses a global batch that its parts do not divide."""
    if batch_size <= 0 or batch_size % parts:
        below = batch_size // parts * parts
        hint = f"{below} or {below + parts}" if below > 0 else f"{parts}"
        raise UserError(f"{key}={batch_size} is not a multiple of the {parts} {what}; try {hint}")


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a global batch, to global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def prefetch(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[Any]:
    """Sends each batch while the step before it still computes; holds two on the devices."""
    ahead = to_devices(next(batches), mesh)
    for batch in batches:
        current, ahead = ahead, to_devices(batch, mesh)
        yield current
    yield ahead
