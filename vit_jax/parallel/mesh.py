"""One global mesh over all devices of all processes."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError

BATCH_AXES = ("data",)


def make_mesh(data: int = -1) -> Mesh:
    """A mesh with the axis `data`, over which the batch is split.

    Args:
        data: devices along it; -1 takes all.

    Raises:
        UserError: there are fewer devices than asked for.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 0 < count <= len(devices):
        raise UserError(f"config.mesh.data={data}: there are {len(devices)} devices")
    # Auto axes: from JAX 0.12 on the default of `jax.make_mesh` is explicit sharding.
    return Mesh(np.asarray(devices[:count]), BATCH_AXES, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension is split over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh, key: str) -> None:
    """Refuses a global batch that the mesh does not divide."""
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    if batch_size <= 0 or batch_size % shards:
        below = batch_size // shards * shards
        hint = f"{below} or {below + shards}" if below > 0 else f"{shards}"
        raise UserError(f"{key}={batch_size} is not a multiple of the {shards} devices; try {hint}")


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
