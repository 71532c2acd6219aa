"""Parser of a compiled program's HLO text: loops, and the compiler's cycle estimates.

`compiled.cost_analysis()` does not serve here, since it counts the body of a loop once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
# In types a capital letter precedes a parenthesis (tiling); opcodes are lower-case.
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)"?')
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")

# No work: they name data, or wait for an operation that is counted elsewhere.
_FREE = {
    "after-all", "bitcast", "constant", "copy-done", "copy-start", "get-tuple-element",
    "opt-barrier", "parameter", "partition-id", "recv", "recv-done", "replica-id", "send",
    "send-done", "tuple",
}  # fmt: skip
_COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
    "ragged-all-to-all", "reduce-scatter",
)  # fmt: skip
# Custom calls of the TPU compiler that mark or reserve something and do no work.
_MARKERS = {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "AsyncCollectiveStart",
    "GatherScatterIndicesBitpacked", "Sharding", "SliceId",
}  # fmt: skip
# Opcodes that run other computations. `-start`: asynchronous, on the SparseCores (TPU7x).
_CALLERS_WITHIN = {"fusion", "custom-call-start", "call-start"}
_CALLERS = {"call", "conditional", "async-start", *_CALLERS_WITHIN}
# Smaller results are loop counters, PRNG keys and the like.
_SMALL_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: name, without the leading %.
        opcode: operation, as "fusion".
        result: type of the result, as text.
        text: the line after the equals sign.
    """

    name: str
    opcode: str
    result: str
    text: str

    @property
    def operands(self) -> list[str]:
        """The names of the operands."""
        inside = self.text[len(self.result) :].partition("(")[2].partition(")")[0]
        return re.findall(r"%([\w.\-]+)", inside)

    @property
    def arrays(self) -> list[tuple[int, tuple[int, ...]]]:
        """Bytes and shape of each array of the result."""
        found = []
        for dtype, dimensions in _ARRAY.findall(self.result):
            shape = tuple(int(n) for n in dimensions.split(",") if n)
            found.append((math.ceil(math.prod(shape) * dtype_bytes(dtype)), shape))
        return found


def dtype_bytes(dtype: str) -> float:
    """Bytes per element of an HLO type, as "bf16"; 0 for tokens."""
    if dtype == "pred":
        return 1
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 0


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction and its executions.

    Attributes:
        instruction: the instruction.
        computation: name of the computation that contains it.
        times: executions per step.
        fused: whether it is part of a fusion, whose estimate includes it.
    """

    instruction: Instruction
    computation: str
    times: int
    fused: bool


class Module:
    """A compiled program."""

    def __init__(self, text: str) -> None:
        """Parses a program.

        Args:
            text: `compiled.as_text()`.
        """
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, self.unknown_loops = "", 0
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            if current is not None and (found := _INSTRUCTION.match(line)):
                instruction = _parse(found[2], found[3])
                if instruction:
                    current[instruction.name] = instruction
            elif header := _COMPUTATION.match(line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith("}"):
                current = None

    def visits(self) -> Iterator[Visit]:
        """Iterates over all executed instructions, including those inside fusions."""
        self.unknown_loops = 0
        yield from self._walk(self.entry, 1, fused=False)

    def _walk(self, name: str, times: int, fused: bool) -> Iterator[Visit]:
        for instruction in self.computations.get(name, {}).values():
            yield Visit(instruction, name, times, fused)
            if instruction.opcode == "while":
                trips = self.trip_count(name, instruction)
                self.unknown_loops += trips is None
                body = _attribute(instruction.text, "body")
                yield from self._walk(body, times * (trips or 1), fused)
            elif instruction.opcode in _CALLERS:
                inside = fused or instruction.opcode in _CALLERS_WITHIN
                for called in _called(instruction.text):
                    yield from self._walk(called, times, inside)

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Number of iterations of a `while` instruction; None where it is unknown.

        The CPU and GPU compilers write it into the text. For TPU it follows from the condition
        `i < bound` and the increment in the body; the counters of JAX's loops start at 0.

        Args:
            computation: name of the computation that contains the instruction.
            loop: `while` instruction.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
            return int(known[1])
        condition = self.computations.get(_attribute(loop.text, "condition"), {})
        body = self.computations.get(_attribute(loop.text, "body"), {})
        test = next(reversed(condition.values()), None)
        if test is None or test.opcode != "compare" or "direction=LT" not in test.text:
            return None
        counter, bound = (condition.get(name) for name in test.operands)
        limit = _constant(bound)
        index = re.search(r"index=(\d+)", counter.text) if counter else None
        if limit is None or index is None or counter is None:
            return None
        step = self._increment(body, int(index[1]))
        return math.ceil(limit / step) if step else None

    def _increment(self, body: dict[str, Instruction], index: int) -> int | None:
        """Number that the body of a loop adds to one element of the loop state."""
        root = next(reversed(body.values()), None)
        if root is None or root.opcode != "tuple" or index >= len(root.operands):
            return None
        update = body.get(root.operands[index])
        while update is not None and update.opcode in ("copy", "bitcast"):
            update = body.get(update.operands[0])
        if update is None or update.opcode not in ("add", "fusion"):
            return None
        if update.opcode == "fusion":
            update = next(reversed(self.computations[_called(update.text)[0]].values()))
            body = self.computations[_called(body[root.operands[index]].text)[0]]
        steps = [_constant(body.get(name)) for name in update.operands]
        return next((step for step in steps if step), None)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The compiler's estimate of a step.

    Attributes:
        cycles: clock cycles, without collectives and custom calls.
        custom_calls: target -> executions. The compiler estimates no cycles for these.
        other: opcode -> executions without an estimate; results under 4 KiB are ignored.
        loops: number of loops of unknown length, counted as one iteration.
        by_source: operation of the model -> its part of `cycles`, the largest first.
    """

    cycles: int
    custom_calls: dict[str, int]
    other: dict[str, int]
    loops: int
    by_source: dict[str, int]


def estimate(module: Module) -> Estimate:
    """Sums the compiler's cycle estimates, weighted with the trip counts of the loops.

    Args:
        module: compiled program.
    """
    cycles: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    other: collections.Counter[str] = collections.Counter()
    for visit in module.visits():
        instruction = visit.instruction
        if visit.fused:
            continue
        if found := _CYCLES.search(instruction.text):
            cycles[source(instruction)] += int(found[1]) * visit.times
        elif instruction.opcode == "custom-call":
            target = _attribute(instruction.text, "custom_call_target")
            if target not in _MARKERS:
                calls[target] += visit.times
        elif not _needs_no_estimate(module, instruction):
            other[instruction.opcode] += visit.times
    return Estimate(
        cycles=sum(cycles.values()),
        custom_calls=dict(calls),
        other=dict(other),
        loops=module.unknown_loops,
        by_source=dict(cycles.most_common()),
    )


def source(instruction: Instruction) -> str:
    """Operation of the model that an instruction comes from; the opcode where it is unknown."""
    found = re.search(r'op_name="([^"]*)"', instruction.text)
    return found[1].removeprefix("jit(step)/") if found else instruction.opcode


def is_collective(opcode: str) -> bool:
    """Whether an opcode starts communication between devices."""
    return opcode.removesuffix("-start") in _COLLECTIVES


def _needs_no_estimate(module: Module, instruction: Instruction) -> bool:
    opcode = instruction.opcode
    if opcode in _FREE or opcode in ("while", "call", "conditional") or is_collective(opcode):
        return True
    if opcode.endswith(("-done", "-update", "-start")):
        return True
    if opcode == "fusion":
        inside = module.computations.get(_called(instruction.text)[0], {})
        if any(is_collective(x.opcode) for x in inside.values()):
            return True
    return sum(size for size, _ in instruction.arrays) < _SMALL_BYTES


def _parse(name: str, text: str) -> Instruction | None:
    found = _OPCODE.search(text)
    return Instruction(name, found[1], text[: found.start(1)], text) if found else None


def _attribute(text: str, key: str) -> str:
    found = re.search(rf'{key}="?%?([\w.\-]+)', text)
    return found[1] if found else ""


def _called(text: str) -> list[str]:
    listed = _CALLED_LIST.search(text)
    names = re.findall(r"[\w.\-]+", listed[1]) if listed else []
    return names + _CALLED.findall(text)


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    found = re.search(r"constant\((-?\d+)\)", instruction.text)
    return int(found[1]) if found else None
