"""Parser of a compiled program's HLO text, with the trip counts of its loops.

`compiled.cost_analysis()` does not serve here, since it counts the body of a loop once.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_END = re.compile(r"\}(,|$)")  # of a computation
# In types a capital letter precedes a parenthesis (tiling); opcodes are lower-case.
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
# Type, dimensions and layout of an array. In layouts, S(1) is VMEM.
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")

_COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
    "ragged-all-to-all", "reduce-scatter",
)  # fmt: skip
# Opcodes that run other computations. `-start`: asynchronous, on the SparseCores (TPU7x).
_CALLERS_WITHIN = {"fusion", "custom-call-start", "call-start"}
_CALLERS = {"call", "conditional", "async-start", *_CALLERS_WITHIN}


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """Type of an array.

    Attributes:
        dtype: HLO type of the elements, as "bf16".
        shape: dimensions.
        layout: layout in braces; empty where the text has none.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """Bytes of the elements, without padding."""
        return math.ceil(math.prod(self.shape) * dtype_bytes(self.dtype))

    @property
    def in_vmem(self) -> bool:
        """Whether the array lies in VMEM, where it costs no bandwidth of HBM."""
        return "S(1)" in self.layout


def parse_arrays(text: str) -> list[ArrayType]:
    """Parses the types of all arrays of a text.

    Args:
        text: types in the notation of HLO, such as the result of an instruction.
    """
    return [
        ArrayType(dtype, tuple(int(n) for n in dimensions.split(",") if n), layout)
        for dtype, dimensions, layout in _ARRAY.findall(text)
    ]


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
        return [(array.bytes, array.shape) for array in parse_arrays(self.result)]


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
        for line in _joined(text.splitlines()):
            if current is not None and (found := _INSTRUCTION.match(line)):
                instruction = _parse(found[2], found[3])
                if instruction:
                    current[instruction.name] = instruction
            elif header := _COMPUTATION.match(line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif _END.match(line):
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
                body = attribute(instruction.text, "body")
                yield from self._walk(body, times * (trips or 1), fused)
            elif instruction.opcode in _CALLERS:
                inside = fused or instruction.opcode in _CALLERS_WITHIN
                for inner in called(instruction.text):
                    yield from self._walk(inner, times, inside)

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
        condition = self.computations.get(attribute(loop.text, "condition"), {})
        body = self.computations.get(attribute(loop.text, "body"), {})
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
            update = next(reversed(self.computations[called(update.text)[0]].values()))
            body = self.computations[called(body[root.operands[index]].text)[0]]
        steps = [_constant(body.get(name)) for name in update.operands]
        return next((step for step in steps if step), None)


def source(instruction: Instruction) -> str:
    """Operation of the model that an instruction comes from; the opcode where it is unknown."""
    found = re.search(r'op_name="([^"]*)"', instruction.text)
    return found[1].removeprefix("jit(step)/") if found else instruction.opcode


def is_collective(opcode: str) -> bool:
    """Whether an opcode starts communication between devices."""
    return opcode.removesuffix("-start") in _COLLECTIVES


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Joins the lines of an instruction, whose attributes may contain line breaks.

    Instructions are indented, as their further lines are not.
    """
    pending = ""
    for line in lines:
        if pending and line and not line[0].isspace() and not _END.match(line):
            pending += line
            continue
        if pending:
            yield pending
        pending = line if line[:1].isspace() else ""
        if not pending:
            yield line
    if pending:
        yield pending


def _parse(name: str, text: str) -> Instruction | None:
    found = _OPCODE.search(text)
    return Instruction(name, found[1], text[: found.start(1)], text) if found else None


def attribute(text: str, key: str) -> str:
    """Name after `key=` in an instruction's text; empty without the key."""
    found = re.search(rf'{key}="?%?([\w.\-]+)', text)
    return found[1] if found else ""


def called(text: str) -> list[str]:
    """Names of the computations that an instruction's text calls."""
    listed = _CALLED_LIST.search(text)
    names = re.findall(r"[\w.\-]+", listed[1]) if listed else []
    return names + _CALLED.findall(text)


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    found = re.search(r"constant\((-?\d+)\)", instruction.text)
    return int(found[1]) if found else None
