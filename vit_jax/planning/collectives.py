"""Communication between devices in a compiled step, and its time at full link speed."""

import collections
import dataclasses
import math
import re
from typing import Any

import jax

from vit_jax.planning.hlo import Module, Visit, is_collective, source

BETWEEN_SLICES = "between-slices"
PARAMETERS, ACTIVATIONS, OTHER = "parameters", "activations", "other"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a step.

    Attributes:
        kind: opcode, as "all-gather"; "between-slices" for a transfer over the data-centre network.
        group: number of devices that take part in one instance.
        arrays: bytes and full shape of each array: after an all-gather, or before a reduce-scatter.
        times: executions per step.
        source: operation of the model that it comes from.
    """

    kind: str
    group: int
    arrays: tuple[tuple[int, Shape], ...]
    times: int
    source: str

    @property
    def array_bytes(self) -> int:
        """Bytes of all arrays, for one execution."""
        return sum(size for size, _ in self.arrays)

    @property
    def moved_bytes(self) -> float:
        """Bytes that each device receives per step, at least.

        An all-reduce counts as a reduce-scatter followed by an all-gather.
        """
        if self.kind in ("collective-permute", "collective-broadcast", BETWEEN_SLICES):
            return float(self.array_bytes * self.times)
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.array_bytes * (self.group - 1) / self.group * self.times

    def seconds(self, link_bandwidth: float, network_bandwidth: float) -> float:
        """Time per step at full speed, without latency.

        Args:
            link_bandwidth: bytes/s in one direction over one link. A ring along one axis of the
                torus uses two links per device, a permutation one.
            network_bandwidth: bytes/s per device between slices.
        """
        if self.kind == BETWEEN_SLICES:
            return self.moved_bytes / network_bandwidth
        if self.kind == "collective-permute":
            return self.moved_bytes / link_bandwidth
        if self.kind == "all-to-all":
            # In a ring of n devices each device's n blocks pass n / 4 links on average, over all
            # n x 2 links.
            return self.array_bytes * self.group / 8 / link_bandwidth * self.times
        return self.moved_bytes / (2 * link_bandwidth)


def find_collectives(module: Module, devices: int) -> list[Collective]:
    """Lists the collectives of a step, the largest first.

    Args:
        module: compiled program.
        devices: devices per slice, the group size of collectives without an explicit group.
    """
    found = [
        _collective(visit, devices)
        for visit in module.visits()
        if _starts_collective(module, visit)
    ]
    return sorted(found, key=lambda c: -c.moved_bytes)


def bytes_by_kind(collectives: list[Collective]) -> dict[str, int]:
    """Sums the bytes that each device receives per step, by kind of collective."""
    totals: collections.Counter[str] = collections.Counter()
    for collective in collectives:
        totals[collective.kind] += round(collective.moved_bytes)
    return dict(totals)


def milliseconds_by_kind(
    collectives: list[Collective], link_bandwidth: float, network_bandwidth: float
) -> dict[str, float]:
    """Sums the time per step by kind of collective, as if nothing overlapped.

    Args:
        collectives: result of `find_collectives`.
        link_bandwidth: see `Collective.seconds`.
        network_bandwidth: see `Collective.seconds`.
    """
    totals: dict[str, float] = {}
    for collective in collectives:
        time = 1e3 * collective.seconds(link_bandwidth, network_bandwidth)
        totals[collective.kind] = totals.get(collective.kind, 0.0) + time
    return totals


class Contents:
    """Classifies the arrays of collectives as parameters, activations or other, by their shapes.

    A compiled program keeps no other trace of an array's role.
    """

    def __init__(self, params: Any, batch_size: int, batch_shards: int) -> None:
        """Collects the shapes of the parameters.

        Args:
            params: tree of `ShapeDtypeStruct`s with shardings.
            batch_size: global batch size, examples.
            batch_shards: number of shards of the batch.
        """
        self._local_batch = batch_size // batch_shards
        self._params: set[Shape] = set()
        for x in jax.tree.leaves(params):
            for shape in (x.shape, x.sharding.shard_shape(x.shape)):
                # The layers of a scanned stack are communicated one at a time.
                self._params |= {_normalised(shape), _normalised(shape[1:])}

    def classify(self, shape: Shape) -> str:
        """Classifies an array; a gradient counts as parameters.

        Args:
            shape: shape of the array in the compiled program.

        Returns:
            "parameters", "activations", or "other" (scalars, for example).
        """
        if _normalised(shape) and _normalised(shape) in self._params:
            return PARAMETERS
        if self._local_batch > 1 and any(n and n % self._local_batch == 0 for n in shape):
            return ACTIVATIONS
        return OTHER

    def total_bytes(self, found: list[Collective]) -> dict[str, int]:
        """Sums the bytes that each device receives per step, by class of array."""
        totals: collections.Counter[str] = collections.Counter()
        for collective in found:
            for size, shape in collective.arrays:
                fraction = size / max(collective.array_bytes, 1)
                totals[self.classify(shape)] += round(fraction * collective.moved_bytes)
        return dict(totals.most_common())

    def describe(self, collective: Collective) -> dict[str, Any]:
        """Describes a collective as plain data."""
        classes = {self.classify(shape) for _, shape in collective.arrays}
        return {
            "kind": collective.kind,
            "contents": " and ".join(sorted(classes, reverse=True)),
            "shapes": [list(shape) for _, shape in collective.arrays],
            "group": collective.group,
            "times": collective.times,
            "bytes": round(collective.moved_bytes),
            "source": collective.source,
        }


def group_size(text: str, devices: int) -> int:
    """Parses the number of devices per group from an HLO instruction.

    Args:
        text: instruction, in any of the three notations of XLA.
        devices: result for an instruction without groups.
    """
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        # Part of an axis is written as 'axis':(offset)size.
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    return devices


def _starts_collective(module: Module, visit: Visit) -> bool:
    instruction = visit.instruction
    if instruction.opcode == "send":
        return True
    if not is_collective(instruction.opcode):
        return False
    if "async_collective_fusion_config" not in instruction.text:
        return True
    # The TPU compiler distributes one collective over several fusions, to overlap it with their
    # work. Each repeats the instruction; only the first contains this marker.
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
        # The result is (operands, results, flags); flags are scalars.
        data = [array for array in arrays if array[1]]
        arrays = data[len(data) // 2 :]
    elif kind == "reduce-scatter":
        arrays = [(size * group, shape) for size, shape in arrays]
    elif kind == "all-reduce" and visit.computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # the TPU compiler's name for a fused all-reduce and slice
    return Collective(
        kind=kind,
        group=group,
        arrays=tuple(arrays),
        times=visit.times,
        source=source(instruction),
    )


def _normalised(shape: Shape) -> Shape:
    """Sorts the dimensions and drops those of size 1: compilers transpose and reshape."""
    return tuple(sorted(n for n in shape if n > 1))
