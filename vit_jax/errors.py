"""Errors that a user can act upon: what was expected, what was found, the nearest valid name."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Something the user can mend. Entry points print it on one line and exit with code 2."""


class Interrupted(Exception):
    """The work was asked to stop and its state is saved; the message says how to go on."""


def unknown(name: str, valid: Iterable[str], what: str) -> UserError:
    """Builds the error for a name that is not among the valid ones."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return UserError(f"unknown {what} {name!r}; {hint}")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`, or an error that names the nearest valid name."""
    if name not in table:
        raise unknown(name, table, what)
    return table[name]


def check_name(name: str, valid: Iterable[str], what: str) -> None:
    """Refuses a name that is not among the valid ones."""
    if name not in (names := list(valid)):
        raise unknown(name, names, what)
