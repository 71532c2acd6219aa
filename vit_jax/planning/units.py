"""Sizes in bytes, and their text."""

import re

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}


def format_bytes(size: float | None) -> str:
    """Formats a size with a binary unit, as "1.50 GiB"; "unknown" for None."""
    if size is None:
        return "unknown"
    for unit, scale in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"


def demanded_bytes(message: str) -> int | None:
    """Parses the memory that XLA tried to allocate from its out-of-memory error.

    Args:
        message: text of a `RESOURCE_EXHAUSTED` error.

    Returns:
        Size in bytes; None where the message does not contain it.
    """
    found = re.search(
        r"\(([\d.]+)([KMGT]?)i?B?\) exceeds available|Used ([\d.]+)([KMGT]?)i?B? of", message
    )
    if found is None:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * _SUFFIXES[unit])
