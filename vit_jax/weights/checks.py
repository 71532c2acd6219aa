"""What does not fit between a file and a model, told at once and before anything is read."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.transforms import Shape

if TYPE_CHECKING:
    from vit_jax.weights.mapping import Entry

T = TypeVar("T")
# Of tables in half precision: bfloat16 rounds values near one by up to 0.004.
TOLERANCE = 0.01


def check(
    entries: Sequence["Entry"],
    file: TensorFile,
    shapes: Mapping[str, Shape],
    ignored: Sequence[str],
) -> None:
    """Compares all names and shapes of a file with those that the entries expect.

    Args:
        entries: of the format.
        file: opened weights.
        shapes: of all our parameters, by path.
        ignored: patterns (`fnmatch`) of names that hold no parameter.

    Raises:
        UserError: lists everything that is missing, unexpected or of another shape.
    """
    check_complete(entries, shapes)
    expected: dict[str, Shape] = {}
    misshapen: dict[str, str] = {}
    for entry in entries:
        theirs = entry.their_shapes(shapes)
        for _, keys in entry.groups():
            expected.update(zip(keys, theirs, strict=True))
            present = all(key in file for key in keys)
            if present and not entry.accepts([file.shape(key) for key in keys], shapes):
                misshapen |= {
                    key: f"expected {expected[key]}, found {file.shape(key)}"
                    for key in keys
                    if file.shape(key) != expected[key]
                }
    missing = {key: shape for key, shape in expected.items() if key not in file}
    unexpected = {
        key: file.shape(key) for key in file if key not in expected and not _matches(key, ignored)
    }
    if missing or unexpected or misshapen:
        raise UserError(describe(file, missing, unexpected, misshapen))


def check_constants(
    file: TensorFile, constants: Mapping[str, np.ndarray], ignored: Sequence[str]
) -> None:
    """Refuses a file whose tables are not those that the model computes instead of loading them."""
    for key, value in constants.items():
        if key not in file or _matches(key, ignored):
            continue
        found = f"shape {file.shape(key)}"
        if file.shape(key) == value.shape:
            error = np.max(np.abs(file.read(key).astype(np.float32) - value))
            if error <= TOLERANCE:
                continue
            found = f"values that differ by up to {error:.2g}"
        raise UserError(
            f"{file}: {key} is no parameter of this model, which computes it: expected its own "
            f"values {value.shape}; found {found}"
        )


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def check_complete(entries: Sequence["Entry"], shapes: Mapping[str, Shape]) -> None:
    """Refuses a model with parameters that the format has no name for, or the other way round."""
    named = [path for entry in entries for path in entry.paths]
    lost = [f"{path} {shape}" for path, shape in shapes.items() if path not in named]
    surplus = [path for path in named if path not in shapes]
    if lost or surplus:
        raise UserError(
            "the format cannot hold this model: it has no names for "
            f"{', '.join(lost) or 'nothing'}; it names but the model lacks "
            f"{', '.join(surplus) or 'nothing'}"
        )


def describe(
    file: Any,
    missing: Mapping[str, Shape],
    unexpected: Mapping[str, Shape],
    misshapen: Mapping[str, str],
) -> str:
    """All that does not fit between weights and a model, for an error.

    Args:
        file: where the weights lie, as it is printed.
        missing: what the model needs: name -> shape.
        unexpected: what it has no use for: name -> shape.
        misshapen: name -> what was expected and found.
    """
    surplus = _fold(unexpected)
    lines = [f"missing: {k} {shape}{_near(k, surplus)}" for k, shape in _fold(missing).items()]
    lines += [f"unexpected: {key} {shape}" for key, shape in surplus.items()]
    lines += [f"another shape: {key}: {found}" for key, found in _fold(misshapen).items()]
    return (
        f"{file} does not fit the model, nothing was loaded; tensors missing: {len(missing)}, "
        f"unexpected: {len(unexpected)}, of another shape: {len(misshapen)}\n  "
        + "\n  ".join(lines)
    )


def _fold(values: Mapping[str, T]) -> dict[str, T]:
    """Names with equal values that differ in their last number alone as one: `blocks.{0-11}.x`."""
    numbers: dict[tuple[str, str, T], list[int]] = {}
    folded: dict[str, T] = {}
    for key, value in values.items():
        match = re.fullmatch(r"(.*(?:[./]|block_))(\d+)([./].*)", key)
        if match is None:
            folded[key] = value
        else:
            numbers.setdefault((match[1], match[3], value), []).append(int(match[2]))
    for (before, after, value), found in numbers.items():
        folded[f"{before}{_ranges(found)}{after}"] = value
    return folded


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as {0-2,5}; a single number as itself."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return f"{{{','.join(f'{r[0]}-{r[-1]}' if len(r) > 1 else str(r[0]) for r in runs)}}}"


def _near(key: str, candidates: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(candidates), n=1, cutoff=0.6)
    return f" (nearest: {near[0]})" if near else ""
