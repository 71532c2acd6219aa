"""Errors about files that do not fit a model, raised before any tensor is read."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.transforms import Shape

T = TypeVar("T")
# For tables in half precision: bfloat16 rounds values near one by up to 0.004.
TOLERANCE = 0.01


def check(
    entries: Sequence[Entry],
    file: TensorFile,
    shapes: Mapping[str, Shape],
    ignored: Sequence[str],
) -> None:
    """Compares all names and shapes of a file with the expected ones.

    Args:
        entries: mapping of the file's format.
        file: opened weight file.
        shapes: shapes of all parameters of the model by path.
        ignored: patterns (`fnmatch`) of tensors that are not parameters.

    Raises:
        UserError: lists all tensors that are missing, unexpected or of another shape.
    """
    check_complete(entries, shapes)
    expected: dict[str, Shape] = {}
    misshapen: dict[str, str] = {}
    for entry in entries:
        tensor_shapes = entry.tensor_shapes(shapes)
        for _, keys in entry.groups():
            expected.update(zip(keys, tensor_shapes, strict=True))
            present = all(key in file for key in keys)
            if present and not entry.accepts([file.shape(key) for key in keys], shapes):
                hint = f" ({entry.resize.hint})" if entry.resize else ""
                misshapen |= {
                    key: f"expected {expected[key]}, found {file.shape(key)}{hint}"
                    for key in keys
                    if file.shape(key) != expected[key]
                }
    missing = {key: shape for key, shape in expected.items() if key not in file}
    unexpected = {
        key: file.shape(key)
        for key in file
        if key not in expected and key not in file.beside and not matches(key, ignored)
    }
    if missing or unexpected or misshapen:
        raise UserError(describe(file, missing, unexpected, misshapen))


def check_constants(
    file: TensorFile, constants: Mapping[str, np.ndarray], ignored: Sequence[str]
) -> None:
    """Checks the tensors of a file that the model computes instead of loading.

    Args:
        file: opened weight file.
        constants: expected values by name; the file may lack them.
        ignored: patterns of names that are not compared.

    Raises:
        UserError: a tensor has other values.
    """
    for key, value in constants.items():
        if key not in file or matches(key, ignored):
            continue
        found = f"shape {file.shape(key)}"
        if file.shape(key) == value.shape:
            error = np.max(np.abs(file.read(key).astype(np.float32) - value))
            if error <= TOLERANCE:
                continue
            found = f"values that differ by up to {error:.2g}"
        raise UserError(
            f"{file}: {key} is not a parameter of this model, which computes it: expected the "
            f"computed values {value.shape}; found {found}"
        )


def matches(key: str, patterns: Iterable[str]) -> bool:
    """Returns whether a name matches one of several patterns (`fnmatch`).

    Args:
        key: name of a tensor.
        patterns: patterns, as "*.position_ids".
    """
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def check_complete(entries: Sequence[Entry], shapes: Mapping[str, Shape]) -> None:
    """Checks that a mapping names exactly the parameters of a model.

    Args:
        entries: mapping of a format.
        shapes: shapes of all parameters of the model by path.

    Raises:
        UserError: lists parameters without a name in the format, and those the model lacks.
    """
    named = [path for entry in entries for path in entry.paths]
    lost = [f"{path} {shape}" for path, shape in shapes.items() if path not in named]
    surplus = [path for path in named if path not in shapes]
    if lost or surplus:
        raise UserError(
            "the format cannot hold this model; parameters without a name in the format: "
            f"{', '.join(lost) or 'none'}; parameters that the model lacks: "
            f"{', '.join(surplus) or 'none'}"
        )


def describe(
    file: Any,
    missing: Mapping[str, Shape],
    unexpected: Mapping[str, Shape],
    misshapen: Mapping[str, str],
) -> str:
    """Returns an error message about all differences between weights and a model.

    Args:
        file: name of the weights.
        missing: shapes of tensors that the model needs and the weights lack, by name.
        unexpected: shapes of tensors that the model does not have, by name.
        misshapen: expected and found shape of tensors, by name.
    """
    surplus = _fold(unexpected)
    lines = [f"missing: {k} {shape}{_near(k, surplus)}" for k, shape in _fold(missing).items()]
    lines += [f"unexpected: {key} {shape}" for key, shape in surplus.items()]
    lines += [f"another shape: {key}: {found}" for key, found in _fold(misshapen).items()]
    lines = [printable(line) for line in lines]
    return (
        f"{file} does not fit the model, nothing was loaded; tensors missing: {len(missing)}, "
        f"unexpected: {len(unexpected)}, of another shape: {len(misshapen)}\n  "
        + "\n  ".join(lines)
    )


def _fold(values: Mapping[str, T]) -> dict[str, T]:
    """Merges names that differ in their last number only, as `blocks.{0-11}.x`."""
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
    """Formats [0, 1, 2, 5] as {0-2,5}, and a single number as itself."""
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
