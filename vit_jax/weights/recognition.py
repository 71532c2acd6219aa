"""Choosing the format of a file among the known formats."""

from collections.abc import Sequence
from typing import Any

from vit_jax.errors import UserError, check_name
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.format import Format


def recognise(file: TensorFile, formats: Sequence[Format]) -> Format:
    """Returns the one format that matches the tensor names of a file.

    Args:
        file: opened weight file, after `unwrap`.
        formats: known formats.

    Raises:
        UserError: no format matches, or several do.
    """
    found = [f for f in formats if f.matches(file)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{f.name} ({type(f).__name__})" for f in found) or "none"
    raise UserError(
        f"{file}: expected tensors of one format out of {', '.join(format_names(formats))}; "
        f"matching: {names}; tensors: {', '.join(file.keys()[:8])}, ...; name the format with "
        "format= or --from"
    )


def find_format(name: str, architecture: Any, formats: Sequence[Format]) -> Format:
    """Returns the format of a library for an architecture.

    Args:
        name: `Format.name`.
        architecture: config dataclass of a model.
        formats: known formats.

    Raises:
        UserError: unknown name, or a library without this architecture.
    """
    named = formats_named(name, formats)
    # A detector is also a dual encoder, whose formats lack its heads.
    for candidate in sorted(named, key=lambda f: type(architecture) not in f.architectures):
        if isinstance(architecture, candidate.architectures) and candidate.holds(architecture):
            return candidate
    raise _unsuited(name, named, architecture)


def choose_format(
    file: TensorFile, architecture: Any, formats: Sequence[Format], name: str | None = None
) -> Format:
    """Returns the format of a file that is to be loaded into a model.

    Args:
        file: opened weight file.
        architecture: config dataclass of the model.
        formats: known formats.
        name: `Format.name`; None recognises the format from the tensor names.

    Raises:
        UserError: the format is unknown or ambiguous, or cannot hold the architecture.
    """
    if name is not None:
        return find_format(name, architecture, formats)
    found = recognise(file, formats)
    if not isinstance(architecture, found.architectures):
        raise UserError(f"{file}: {_unsuited(found.name, [found], architecture)}")
    return found


def formats_named(name: str, formats: Sequence[Format]) -> list[Format]:
    """Returns the formats of a library, one per architecture.

    Raises:
        UserError: unknown name; the nearest one is given.
    """
    check_name(name, format_names(formats), "format")
    return [f for f in formats if f.name == name]


def format_names(formats: Sequence[Format]) -> list[str]:
    """Returns the names of formats in order, each once."""
    return list(dict.fromkeys(f.name for f in formats))


def _unsuited(name: str, formats: Sequence[Format], architecture: Any) -> UserError:
    kinds = dict.fromkeys(kind.__name__ for f in formats for kind in f.architectures)
    return UserError(
        f"the format {name} holds models of {' or '.join(kinds)}; found "
        f"{type(architecture).__name__}"
    )
