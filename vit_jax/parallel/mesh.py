"""One global mesh over all devices of all processes and slices. Mesh axes are named here only."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
# Replicas; devices that share the parameters of a replica; devices that share a layer's matmuls.
AXES = (DATA, FSDP, TENSOR)
# One replica per device.
DEFAULT_SIZES = {DATA: -1, FSDP: 1, TENSOR: 1}
# Axes that split the batch. Tensor-parallel devices work on the same examples.
BATCH_AXES = (DATA, FSDP)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list[Any] | None = None
) -> Mesh:
    """Makes a mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
        data: number of replicas; -1: all devices that the other axes leave. Only this axis may
            cross slices, since replicas exchange the least.
        fsdp: number of devices that share the parameters of a replica.
        tensor: number of devices that share the heads and hidden units of a layer.
        devices: devices of the mesh; None: all.

    Returns:
        A mesh whose axes are of type Auto.

    Raises:
        UserError: sizes that do not fit the number of devices or of slices.
    """
    devices = jax.devices() if devices is None else devices
    inner = fsdp * tensor
    if min(fsdp, tensor) < 1 or data < -1 or data == 0:
        raise UserError(
            f"mesh: data={data}, fsdp={fsdp}, tensor={tensor}: expected positive numbers, "
            "or data=-1"
        )
    if data == -1:
        if len(devices) % inner:
            raise UserError(
                f"mesh: fsdp={fsdp} x tensor={tensor} does not divide {len(devices)} devices"
            )
        data = len(devices) // inner
    shape = (data, fsdp, tensor)
    if math.prod(shape) > len(devices):
        raise UserError(
            f"mesh: data={data} x fsdp={fsdp} x tensor={tensor} is "
            f"{math.prod(shape)}, more than the {len(devices)} devices"
        )
    grid = _arrange(devices[: math.prod(shape)], shape)
    # From JAX 0.12, `jax.make_mesh` makes axes of type Explicit by default.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def fitting_sizes(trained: Mapping[str, int], devices: int) -> dict[str, int]:
    """Sizes of the mesh axes for a model that was trained on other devices.

    Args:
        trained: sizes of the axes in training.
        devices: number of devices at hand.

    Returns:
        `fsdp` and `tensor` of training if they divide the devices, and otherwise 1. All devices
        that they leave are replicas.
    """
    fsdp, tensor = trained[FSDP], trained[TENSOR]
    fits = devices % (fsdp * tensor) == 0
    return {**DEFAULT_SIZES, FSDP: fsdp, TENSOR: tensor} if fits else DEFAULT_SIZES


def _arrange(devices: list[Any], shape: tuple[int, int, int]) -> np.ndarray:
    """Arranges devices so that the inner axes connect neighbours on the interconnect."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1:
        data, fsdp, tensor = shape
        if data % len(slices):
            raise UserError(f"mesh.data={data} is not a multiple of the {len(slices)} slices")
        return mesh_utils.create_hybrid_device_mesh(
            (data // len(slices), fsdp, tensor), (len(slices), 1, 1), devices
        )
    return mesh_utils.create_device_mesh(shape, devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds as a whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: its leading dimension is split over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that a batch is split into over the mesh."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, parts: int, key: str, noun: str = "devices") -> None:
    """Checks that a global batch can be divided.

    Args:
        batch_size: number of examples.
        parts: number of parts.
        key: config key of the batch size, for messages.
        noun: noun for the parts, for messages.

    Raises:
        UserError: the batch size is not a positive multiple of `parts`; the nearest ones are given.
    """
    if batch_size <= 0 or batch_size % parts:
        below = batch_size // parts * parts
        hint = f"{below} or {below + parts}" if below > 0 else f"{parts}"
        raise UserError(f"{key}={batch_size} is not a multiple of the {parts} {noun}; try {hint}")


def to_devices(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Sends this process's rows of a global batch to its devices.

    Args:
        batch: local rows by field.
        sharding: sharding of the global arrays, as `batch_sharding`.

    Returns:
        Global arrays.
    """
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def prefetch(
    batches: Iterator[dict[str, np.ndarray]], mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Sends each batch to the devices while the previous step computes.

    Args:
        batches: local rows of each batch.
        mesh: mesh of all devices.

    Yields:
        Global batches; two are on the devices at a time.
    """
    sharding = batch_sharding(mesh)
    ahead = to_devices(next(batches), sharding)
    for batch in batches:
        current, ahead = ahead, to_devices(batch, sharding)
        yield current
    yield ahead
