"""Progress bars of long reading and writing."""

import logging
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], description: str, *, total: int | None = None) -> "tqdm[T]":
    """Iterates with a progress bar on stderr, or a line every 30 s where that is no terminal.

    Processes that log errors only, all except the first one, print nothing.

    Args:
        items: items to iterate over.
        description: text in front of the bar.
        total: number of items, where `items` has no length.
    """
    interval = 0.5 if sys.stderr.isatty() else 30.0
    quiet = not logging.getLogger("vit_jax").isEnabledFor(logging.WARNING)
    return tqdm(
        items, description, total=total, mininterval=interval, delay=interval, disable=quiet
    )
