"""What devices send to each other in a step, and how long the links take for it."""

import collections
import dataclasses
import math
import re

from vit_jax.planning.hlo import Module, Visit, is_collective, source

BETWEEN_SLICES = "between-slices"


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange of a step.

    Attributes:
        kind: as "all-gather", or "between-slices" for what crosses the data centre's network.
        group: devices that take part in one exchange.
        arrays: bytes and shape of each, whole: gathered, or before they are reduced and scattered.
        times: how often it runs in a step.
        source: the operation in the model that it comes from.
    """

    kind: str
    group: int
    arrays: tuple[tuple[int, tuple[int, ...]], ...]
    times: int
    source: str

    @property
    def array_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(size for size, _ in self.arrays)

    @property
    def moved_bytes(self) -> float:
        """Bytes that each device receives in a step, at the least.

        An all-reduce is a reduce-scatter followed by an all-gather.
        """
        if self.kind in ("collective-permute", "collective-broadcast", BETWEEN_SLICES):
            return float(self.array_bytes * self.times)
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.array_bytes * (self.group - 1) / self.group * self.times

    def seconds(self, link_bandwidth: float, network_bandwidth: float) -> float:
        """Time of the exchange at full speed.

        Args:
            link_bandwidth: bytes/s one way over one link; a ring along one axis of the torus has
                two links a device, a permutation one.
            network_bandwidth: bytes/s between slices, a device.
        """
        if self.kind == BETWEEN_SLICES:
            return self.moved_bytes / network_bandwidth
        if self.kind == "collective-permute":
            return self.moved_bytes / link_bandwidth
        if self.kind == "all-to-all":
            # Blocks travel a quarter of the ring on average; in a ring of n each of a device's n
            # blocks passes n / 4 links, over all n x 2 links.
            return self.array_bytes * self.group / 8 / link_bandwidth * self.times
        return self.moved_bytes / (2 * link_bandwidth)


def find_collectives(module: Module, devices: int) -> list[Collective]:
    """The exchanges of a step, the largest first.

    Args:
        module: the compiled program.
        devices: of one slice, for groups that are not written out.
    """
    found = [
        _collective(visit, devices) for visit in module.visits() if _starts_exchange(module, visit)
    ]
    return sorted(found, key=lambda c: -c.moved_bytes)


def bytes_by_kind(collectives: list[Collective]) -> dict[str, float]:
    """Bytes that each device receives in a step, a kind."""
    totals: collections.Counter[str] = collections.Counter()
    for collective in collectives:
        totals[collective.kind] += round(collective.moved_bytes)
    return dict(totals)


def milliseconds_by_kind(
    collectives: list[Collective], link_bandwidth: float, network_bandwidth: float
) -> dict[str, float]:
    """Time at full speed, a kind, as if nothing overlapped."""
    totals: dict[str, float] = {}
    for collective in collectives:
        time = 1e3 * collective.seconds(link_bandwidth, network_bandwidth)
        totals[collective.kind] = totals.get(collective.kind, 0.0) + time
    return totals


def _starts_exchange(module: Module, visit: Visit) -> bool:
    instruction = visit.instruction
    if instruction.opcode == "send":
        return True
    if not is_collective(instruction.opcode):
        return False
    if "async_collective_fusion_config" not in instruction.text:
        return True
    # The TPU compiler spreads one exchange over several fusions, to hide it behind their work; each
    # repeats the instruction, the first has this mark.
    siblings = module.computations[visit.computation].values()
    return any('"AsyncCollectiveStart"' in x.text for x in siblings)


def _collective(visit: Visit, devices: int) -> Collective:
    instruction = visit.instruction
    kind = instruction.opcode.removesuffix("-start")
    group = group_size(instruction.text, devices)
    arrays = instruction.arrays
    if kind == "send":
        kind, arrays = BETWEEN_SLICES, arrays[:1]
    elif instruction.opcode in ("all-gather-start", "collective-permute-start"):
        arrays = _results_of_start(arrays)
    elif kind == "reduce-scatter":
        arrays = [(size * group, shape) for size, shape in arrays]
    elif kind == "all-reduce" and visit.computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # so the TPU compiler names the fusion of the two halves
    return Collective(
        kind=kind,
        group=group,
        arrays=tuple(arrays),
        times=visit.times,
        source=source(instruction),
    )


def _results_of_start(
    arrays: list[tuple[int, tuple[int, ...]]],
) -> list[tuple[int, tuple[int, ...]]]:
    """Of (operands, results, flags...) the results."""
    data = [array for array in arrays if array[1]]
    return data[len(data) // 2 :]


def group_size(text: str, devices: int) -> int:
    """Devices of one group, from the three ways in which XLA writes groups; all where none is."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        # A part of an axis is written 'axis':(before)size.
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    return devices
