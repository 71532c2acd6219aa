"""Errors that a user can act on: expected value, found value, nearest valid name."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """An error that the user can fix. Commands print it on one line and exit with code 2."""


class MissingPackageError(UserError):
    """An optional package is not installed; the message contains the command that installs it."""


class Interrupted(Exception):
    """The work was asked to stop and its state is saved; the message says how to continue."""


def printable(text: str) -> str:
    """Escapes characters that cannot be printed on one line, as bytes that are not UTF-8."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


_SHOWN = 50  # names in a message


def unknown(name: str, valid: Iterable[str], noun: str) -> UserError:
    """Builds the error for a name that is not valid.

    Args:
        name: name that was given.
        valid: valid names, of which the nearest one is suggested.
        noun: kind of name, for the message.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    known = f"known: {', '.join(names[:_SHOWN]) or 'none'}{more}"
    hint = f"did you mean {near[0]!r}?" if near else known
    return UserError(f"unknown {noun} {name!r}; {hint}")


def unknown_key(key: str, path: str, keys: Iterable[str]) -> UserError:
    """Builds the error for a config key that does not exist.

    Args:
        key: key that was given.
        path: path of its block, as "config.optim".
        keys: keys of the block.
    """
    keys = sorted(keys)
    error = unknown(f"{path}.{key}", [f"{path}.{k}" for k in keys], "config key")
    return UserError(f"{error} (keys of {path}: {', '.join(keys) or 'none'})")


def lookup(table: Mapping[str, T], name: str, noun: str) -> T:
    """Returns `table[name]`.

    Args:
        table: values by name.
        name: key.
        noun: kind of name, for the message.

    Raises:
        UserError: no such name; the nearest one is suggested.
    """
    if name not in table:
        raise unknown(name, table, noun)
    return table[name]


def check_name(name: str, valid: Iterable[str], noun: str) -> None:
    """Refuses a name that is not valid.

    Args:
        name: name that was given.
        valid: valid names.
        noun: kind of name, for the message.

    Raises:
        UserError: not a valid name; the nearest one is suggested.
    """
    if name not in (names := list(valid)):
        raise unknown(name, names, noun)
