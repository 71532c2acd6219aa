"""Mutated tables, shards, folders, specs, images, weight files and config overrides.

    python -m benchmarks.fuzz [--count 500] [--seed 0] [--seconds 20] [--subjects table tar ...]

Each input ends in success, in counted examples, or in a `UserError` of one line, within the limits
of time and memory (`MEMORY`). Everything else is a fault: its seed and traceback are printed, and
the exit code is 1.
"""

import argparse
import collections
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import traceback

from benchmarks import fuzz_boxes, fuzz_data, fuzz_models
from benchmarks.mutation import check
from vit_jax.errors import UserError

MEMORY = 1024  # MiB by which one input may raise the peak
SUBJECTS = {**fuzz_data.SUBJECTS, **fuzz_boxes.SUBJECTS, **fuzz_models.SUBJECTS}


def run(
    subjects: list[str], count: int, seed: int, seconds: float
) -> tuple[collections.Counter[str], list[str]]:
    """Reads mutated inputs.

    Args:
        subjects: keys of `SUBJECTS`.
        count: number of inputs.
        seed: seed of the first one; the next ones follow.
        seconds: limit of time per input.

    Returns:
        Numbers of outcomes, and a description of each fault.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    faults: list[str] = []

    def expire(signum: int, frame: object) -> None:
        raise AssertionError(f"longer than {seconds} s")

    signal.signal(signal.SIGALRM, expire)
    peak = _peak_memory()
    for number in range(seed, seed + count):
        rng = random.Random(number)
        subject = rng.choice(subjects)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            with tempfile.TemporaryDirectory() as name:
                os.mkfifo(f"{name}/pipe")
                outcomes.update(SUBJECTS[subject](pathlib.Path(name), rng))
            outcomes[f"{subject}: success"] += 1
        except UserError as error:
            outcomes[f"{subject}: one-line error"] += 1
            try:
                check(error)
            except AssertionError as wrong:
                faults.append(f"seed {number}, {subject}: {wrong}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            faults.append(f"seed {number}, {subject}:\n{traceback.format_exc(limit=-6)}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        before, peak = peak, _peak_memory()
        if peak - before > MEMORY:
            faults.append(f"seed {number}, {subject}: {peak - before:.0f} MiB of memory")
    return outcomes, faults


def _peak_memory() -> float:
    """Largest size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Prints outcomes and faults."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--subjects", nargs="+", choices=sorted(SUBJECTS), default=[*SUBJECTS])
    options = parser.parse_args()
    outcomes, faults = run(options.subjects, options.count, options.seed, options.seconds)
    for fault in faults:
        print(fault, file=sys.stderr)
    for name, count in sorted(outcomes.items()):
        print(f"{name:<24} {count:>6}")
    print(f"{len(faults)} faults in {options.count} inputs, peak memory {_peak_memory():.0f} MiB")
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("VIT_JAX_CACHE", tempfile.mkdtemp())
    sys.exit(main())
