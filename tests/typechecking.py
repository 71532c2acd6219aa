"""Run-time check of annotations, applied to vit_jax by the import hook in conftest.py."""

from collections.abc import Callable
from typing import TypeVar

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

F = TypeVar("F", bound=Callable)

# As for mypy, an int is a float.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: F) -> F:
    """Checks arguments and results of a function against its annotations at every call."""
    try:
        return _check(function)
    except BeartypeDecorHintPep673Exception:  # `Self` in a method
        return function
