"""TPU slices by name: their devices, and the specifications of each chip generation."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

from vit_jax.errors import UserError, unknown
from vit_jax.planning import kernel_schedules
from vit_jax.planning.units import GIB

GB, TERA = 1e9, 1e12

# libtpu reads these when it is loaded. Without them it queries the metadata server for the host.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Specifications of one JAX device: a chip, or half of one where `cores` is 2.

    Attributes:
        cores: JAX devices per chip.
        hbm_bytes: memory, bytes.
        peak_flops: dense bfloat16 FLOP/s.
        hbm_bandwidth: memory bandwidth, bytes/s.
        link_bandwidth: bytes/s in one direction over one link to a neighbour.
        network_bandwidth: bytes/s between slices, over the data-centre network.
        clock: frequency of the compiler's cycles, Hz.
        shapes: common slice shapes, for messages.
        options: further options of `get_topology_desc`.
    """

    cores: int = 1
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    clock: float
    shapes: tuple[str, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


_SHAPES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SHAPES_3D = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
)  # fmt: skip
# Source: https://cloud.google.com/tpu/docs, the page of each generation.
# link_bandwidth: "bidirectional ICI bandwidth (per chip)" divided by two directions and by 4 (2-D
# torus) or 6 ports; v4 from Jouppi et al. 2023 (https://arxiv.org/abs/2304.01433).
# network_bandwidth: 25 Gbit/s per chip on v5e, 50 on v5p; assumed for v4 (50), v6e and TPU7x (100).
# clock: the peak divided by the FLOPs of the MXUs per cycle, 2^17 on v5e, 2^18 on v4 and v5p, and
# assumed to be 2^19 per device on v6e and TPU7x (two MXUs of 256^2, used twice per cycle): the
# compiler's estimate of a matmul of 8192^3 on v6e, 0.7 x 2^19 per cycle, excludes smaller values.
CHIPS = {
    "v4": Chip(
        hbm_bytes=32 * GIB,
        peak_flops=275 * TERA,
        hbm_bandwidth=1200 * GB,
        link_bandwidth=50 * GB,
        network_bandwidth=6.25 * GB,
        clock=1.05e9,
        shapes=_SHAPES_3D,
        # The two cores of a chip are one device.
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        hbm_bytes=16 * GIB,
        peak_flops=197 * TERA,
        hbm_bandwidth=819 * GB,
        link_bandwidth=50 * GB,
        network_bandwidth=3.125 * GB,
        clock=1.5e9,
        shapes=_SHAPES_2D,
    ),
    "v5p": Chip(
        hbm_bytes=95 * GIB,
        peak_flops=459 * TERA,
        hbm_bandwidth=2765 * GB,
        link_bandwidth=100 * GB,
        network_bandwidth=6.25 * GB,
        clock=1.75e9,
        shapes=_SHAPES_3D,
    ),
    "v6e": Chip(
        hbm_bytes=32 * GIB,
        peak_flops=918 * TERA,
        hbm_bandwidth=1638 * GB,
        link_bandwidth=100 * GB,
        network_bandwidth=12.5 * GB,
        clock=1.75e9,
        shapes=_SHAPES_2D,
    ),
    # Two devices per chip, which share its links.
    "tpu7x": Chip(
        cores=2,
        hbm_bytes=96 * GIB,
        peak_flops=2307 * TERA / 2,
        hbm_bandwidth=7380 * GB / 2,
        link_bandwidth=100 * GB / 2,
        network_bandwidth=12.5 * GB / 2,
        clock=2.2e9,
        shapes=_SHAPES_3D,
    ),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """The devices to compile for.

    Attributes:
        name: topology, as "v5e:16x16" or "cpu-8".
        devices: devices of all slices.
        chip: specifications of a device; None for CPU devices, which have no estimates.
        num_slices: number of equal slices.
    """

    name: str
    devices: list[Any]
    chip: Chip | None
    num_slices: int = 1


def find_slice(name: str, num_slices: int = 1) -> Slice:
    """Returns the devices of a topology.

    Args:
        name: generation and shape in chips, as "v5e:16x16", or "cpu-N" for N simulated devices.
        num_slices: number of slices of this shape, connected by the data-centre network.

    Raises:
        UserError: unknown name, or libtpu is not installed.
    """
    if num_slices < 1:
        raise UserError(f"--num_slices={num_slices}: expected 1 or more")
    if found := re.fullmatch(r"cpu-(\d+)", name):
        return _simulated(name, int(found[1]), num_slices)
    generation, _, shape = name.partition(":")
    known = [f"{key}:{s}" for key, chip in CHIPS.items() for s in chip.shapes]
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise unknown(name, [*known, "cpu-8"], "topology")
    chip = CHIPS[generation]
    try:
        devices = _describe(name, num_slices, chip)
    except jax.errors.JaxRuntimeError as error:
        # The name is well-formed, but libtpu has no such slice.
        raise UserError(
            f"{unknown(name, known, 'topology')} (libtpu: {str(error).splitlines()[0]})"
        ) from error
    return Slice(name, devices, chip, num_slices)


def _describe(name: str, num_slices: int, chip: Chip) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the package libtpu (but no TPU): pip install "
            "'vit_jax[plan]'; --topology=cpu-8 works without it"
        )
    for key, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    kernel_schedules.request()
    from jax.experimental import topologies

    several = {"num_slices": num_slices} if num_slices > 1 else {}
    return list(
        topologies.get_topology_desc(
            platform="tpu", topology_name=name, **several, **chip.options
        ).devices
    )


def _simulated(name: str, count: int, num_slices: int) -> Slice:
    if count < 1 or num_slices > 1:
        raise UserError(
            f"--topology={name}: expected cpu-N with 1 or more devices and --num_slices=1"
        )
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--topology={name}: this process has {len(devices)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before it starts"
        )
    return Slice(name, devices[:count], None)


def prepare_platform(name: str) -> None:
    """Configures JAX for compilation only, with the devices of `cpu-N`.

    Call it before JAX initialises its devices.

    Args:
        name: topology, see `find_slice`.
    """
    jax.config.update("jax_platforms", "cpu")
    # Programs for devices that are not attached cannot be loaded from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    found = re.fullmatch(r"cpu-(\d+)", name)
    if found and int(found[1]):
        jax.config.update("jax_num_cpu_devices", int(found[1]))
