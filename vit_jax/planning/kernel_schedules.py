"""Cycles of TPU kernels, from the compiler's final schedule of their instructions.

The compiler estimates the cycles of its own fusions, and none of custom calls, such as Pallas
kernels. But it can write the final schedule of all that it compiles: one VLIW bundle per line, with
the loops around it. One bundle is issued per cycle, unless it waits for memory.
"""

import atexit
import collections
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Collection

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*(?P<depth>>*)\s*\{(?P<empty>\})?")
_BOUND = re.compile(r"scmp\.ge\.s32\.totalorder %\w+, (\d+) /\*[^*]*loop exit test")
_LISTING = re.compile(r"\d+-(?P<name>.+)-\d+-final_bundles\.txt")
_FLAGS = "LIBTPU_INIT_ARGS"  # read when libtpu is loaded

_folder: list[pathlib.Path] = []


def request() -> None:
    """Asks libtpu for the schedules of everything that it will compile. Call it before it loads."""
    if _folder:
        return
    _folder.append(pathlib.Path(tempfile.mkdtemp(prefix="vit_jax_schedules_")))
    atexit.register(shutil.rmtree, _folder[0], ignore_errors=True)
    flags = (
        f"--xla_jf_dump_to={_folder[0]}",
        "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=final_bundles",
    )
    os.environ[_FLAGS] = " ".join([os.environ.get(_FLAGS, ""), *flags]).strip()


def forget() -> None:
    """Removes the schedules of programs compiled so far."""
    for path in _folder[0].iterdir() if _folder else ():
        path.unlink()


def kernel_cycles(names: Collection[str]) -> dict[str, int]:
    """Reads schedules of the programs compiled since `forget`.

    Args:
        names: instructions whose schedules are read; fusions have long ones.

    Returns:
        Name of an instruction -> cycles per execution. Instructions with loops of unknown length
        are left out.
    """
    found = {}
    for path in _folder[0].iterdir() if _folder else ():
        listing = _LISTING.fullmatch(path.name)
        if listing and listing["name"] in names:
            cycles = count_cycles(path.read_text())
            if cycles is not None:
                found[listing["name"]] = cycles
    return found


def count_cycles(listing: str) -> int | None:
    """Counts the bundles that a kernel executes.

    Predicated regions count as executed. Loops count with their trips, the grid among them.

    Args:
        listing: text of a file of final bundles.

    Returns:
        Bundles; None where the listing does not contain the trips of a loop.
    """
    bundles: collections.Counter[tuple[int, ...]] = collections.Counter()
    trips: dict[tuple[int, ...], int] = {}
    loop: tuple[int, ...] = ()
    for number, line in enumerate(listing.splitlines()):
        found = _BUNDLE.match(line)
        if not found:
            continue
        # An empty bundle, which only waits, does not show the loops around it.
        depth = len(loop) if found["empty"] else len(found["depth"])
        loop = loop[:depth] + (number,) * (depth - len(loop))  # a loop's name: its first line
        bundles[loop] += 1
        if bound := _BOUND.search(line):
            trips[loop] = int(bound[1])
    total = 0
    for path, count in bundles.items():
        for i in range(1, len(path) + 1):
            if path[:i] not in trips:
                return None
            count *= trips[path[:i]]
        total += count
    return total
