"""Estimated time of a compiled TPU program: which units it uses, and what limits them."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

from vit_jax.planning.hlo import (
    Instruction,
    Module,
    attribute,
    called,
    is_collective,
    parse_arrays,
    source,
)

_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)"?')
_KERNEL = "tpu_custom_call"
# No work: they name data, or wait for an operation that is counted elsewhere.
_FREE = {
    "after-all", "bitcast", "constant", "copy-done", "copy-start", "get-tuple-element",
    "opt-barrier", "parameter", "partition-id", "recv", "recv-done", "replica-id", "send",
    "send-done", "tuple",
}  # fmt: skip
# Custom calls of the TPU compiler that mark or reserve something and do no work. A ConcatBitcast
# joins slices that were copied next to one another.
_MARKERS = {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "AsyncCollectiveStart",
    "ConcatBitcast", "GatherScatterIndicesBitpacked", "Sharding", "SliceId",
}  # fmt: skip
# Opcodes that only move data, sometimes without an estimate of the compiler.
_MOVES = {
    "broadcast", "concatenate", "copy", "dynamic-slice", "dynamic-update-slice", "pad", "reshape",
    "reverse", "slice", "transpose",
}  # fmt: skip
_MATMULS = {"convolution", "dot"}
# Smaller results are loop counters, PRNG keys and the like.
_SMALL_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Group:
    """Operations of one kind.

    Attributes:
        name: "matmuls", "reductions", "elementwise", "data movement", or the name of a kernel.
        cycles: estimated clock cycles per step.
        memory_cycles: cycles that their traffic with HBM takes at full bandwidth.
    """

    name: str
    cycles: float
    memory_cycles: float

    @property
    def bound(self) -> str:
        """What limits the group: "memory" where its traffic takes most of the time."""
        return "memory" if self.memory_cycles > 0.7 * self.cycles else "compute"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The compiler's estimate of a step.

    Attributes:
        cycles: clock cycles, without collectives and the parts without an estimate.
        custom_calls: target -> executions without an estimate.
        other: opcode -> executions without an estimate; results under 4 KiB are ignored.
        loops: number of loops of unknown length, counted as one iteration.
        by_source: operation of the model -> its part of `cycles`, the largest first.
        groups: the same cycles by kind of operation, the largest first.
    """

    cycles: float
    custom_calls: dict[str, int]
    other: dict[str, int]
    loops: int
    by_source: dict[str, float]
    groups: list[Group]


def estimate(
    module: Module,
    kernel_cycles: Mapping[str, int] | None = None,
    bytes_per_cycle: float = math.inf,
) -> Estimate:
    """Sums cycle estimates, weighted with the trip counts of the loops.

    Fusions have the compiler's own estimate. A kernel takes the cycles of its schedule or those of
    its traffic with HBM, whichever are more; data movement without an estimate takes the latter.

    Args:
        module: compiled program.
        kernel_cycles: instruction -> cycles, see `kernel_schedules.kernel_cycles`.
        bytes_per_cycle: bandwidth of HBM.
    """
    cycles: dict[str, float] = collections.defaultdict(float)
    groups: dict[str, float] = collections.defaultdict(float)
    memory: dict[str, float] = collections.defaultdict(float)
    calls: collections.Counter[str] = collections.Counter()
    other: collections.Counter[str] = collections.Counter()
    kernels = _by_signature(module, kernel_cycles or {})
    for visit in module.visits():
        instruction = visit.instruction
        if visit.fused:
            continue
        traffic = hbm_bytes(instruction, module.computations[visit.computation]) / bytes_per_cycle
        own = compiler_cycles(instruction)
        if own is not None:
            spent: float = own
        elif is_kernel(instruction) and signature(instruction) in kernels:
            spent = max(kernels[signature(instruction)], traffic)
        elif instruction.opcode in _MOVES and traffic and not _is_small(instruction):
            spent = traffic
        else:
            if instruction.opcode == "custom-call":
                target = attribute(instruction.text, "custom_call_target")
                calls[target] += visit.times if target not in _MARKERS else 0
            elif not _needs_no_estimate(module, instruction):
                other[instruction.opcode] += visit.times
            continue
        group = kind(module, instruction)
        cycles[source(instruction)] += spent * visit.times
        groups[group] += spent * visit.times
        memory[group] += traffic * visit.times
    return Estimate(
        cycles=sum(cycles.values()),
        custom_calls=dict(+calls),
        other=dict(other),
        loops=module.unknown_loops,
        by_source=dict(_largest_first(cycles)),
        groups=[Group(name, spent, memory[name]) for name, spent in _largest_first(groups)],
    )


def _largest_first(cycles: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(cycles.items(), key=lambda item: -item[1])


def compiler_cycles(instruction: Instruction) -> int | None:
    """The compiler's own estimate of an instruction, cycles; None where it has none.

    Args:
        instruction: instruction of a TPU program.
    """
    found = _CYCLES.search(instruction.text)
    return int(found[1]) if found else None


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction is a kernel, such as one of Pallas.

    Args:
        instruction: instruction of a TPU program.
    """
    return attribute(instruction.text, "custom_call_target") == _KERNEL


def signature(instruction: Instruction) -> str:
    """Name of a kernel with the types of its results and operands, without their layouts.

    The compiler writes one schedule for instructions that are equal.

    Args:
        instruction: custom call.
    """
    operands = re.search(
        r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}", instruction.text
    )
    types = parse_arrays(instruction.result + (operands[1] if operands else ""))
    name = re.sub(r"[.\d]*$", "", instruction.name)
    return " ".join([name, *(f"{array.dtype}{list(array.shape)}" for array in types)])


def _by_signature(module: Module, kernel_cycles: Mapping[str, int]) -> dict[str, int]:
    """Cycles of kernels by signature; the most where layouts make a difference."""
    found: dict[str, int] = {}
    for visit in module.visits():
        instruction = visit.instruction
        if is_kernel(instruction) and instruction.name in kernel_cycles:
            name = signature(instruction)
            found[name] = max(found.get(name, 0), kernel_cycles[instruction.name])
    return found


def hbm_bytes(instruction: Instruction, computation: Mapping[str, Instruction]) -> int:
    """Bytes that an instruction reads from and writes to HBM, each array once.

    Args:
        instruction: instruction of a program with layouts.
        computation: instructions of its computation, by name.
    """
    if instruction.opcode in _FREE:
        return 0
    operands = [computation[name].result for name in instruction.operands if name in computation]
    if instruction.opcode == "dynamic-update-slice":  # in place
        return 2 * _bytes_in_hbm(operands[1]) if len(operands) > 1 else 0
    return sum(map(_bytes_in_hbm, [instruction.result, *operands]))


def _bytes_in_hbm(text: str) -> int:
    return sum(array.bytes for array in parse_arrays(text) if not array.in_vmem)


def kind(module: Module, instruction: Instruction) -> str:
    """Names the group of an instruction, see `Group`.

    Args:
        module: compiled program.
        instruction: instruction that is not part of a fusion.
    """
    if instruction.opcode == "custom-call":
        found = re.search(r"(\w+)\)*/pallas_call", instruction.text)
        return f"kernel {found[1] if found else instruction.name}"
    opcodes = {instruction.opcode}
    if instruction.opcode == "fusion":
        inside = module.computations.get(called(instruction.text)[0], {})
        opcodes = {x.opcode for x in inside.values()}
    if opcodes & _MATMULS:
        return "matmuls"
    if "reduce" in opcodes or "reduce-window" in opcodes:
        return "reductions"
    return "data movement" if opcodes <= _MOVES | _FREE else "elementwise"


def _is_small(instruction: Instruction) -> bool:
    return sum(size for size, _ in instruction.arrays) < _SMALL_BYTES


def _needs_no_estimate(module: Module, instruction: Instruction) -> bool:
    opcode = instruction.opcode
    if opcode in _FREE or opcode in ("while", "call", "conditional") or is_collective(opcode):
        return True
    if opcode.endswith(("-done", "-update", "-start")):
        return True
    if opcode == "fusion":
        inside = module.computations.get(called(instruction.text)[0], {})
        if any(is_collective(x.opcode) for x in inside.values()):
            return True
    return _is_small(instruction)
