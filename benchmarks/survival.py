"""Fault injection: runs that are killed, preempted, damaged or out of disk space.

    python benchmarks/survival.py [--seed 0]

Prints a Markdown table; the exit code is 1 if anything was lost. For each run it checks that
  - every loss equals that of an undisturbed run, bit for bit (within 1e-5 on other devices or
    processes);
  - it resumes from the newest checkpoint that was complete at the time of the fault;
  - the batches of every epoch contain each example exactly once.
Linux only. The full disk is a small tmpfs; it is skipped where none can be mounted.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import app, flags

_SEED = flags.DEFINE_integer("seed", 0, "PRNG seed for the times of faults and the damaged files.")
_KILLS = flags.DEFINE_integer("kills", 50, "Number of kill -9.")
_SIGTERMS = flags.DEFINE_integer("sigterms", 20, "Number of SIGTERMs.")
_DAMAGES = flags.DEFINE_integer("damages", 10, "Number of damaged checkpoints.")

_HERE = pathlib.Path(__file__).resolve().parent
_PREEMPTED = 75


@dataclasses.dataclass
class Row:
    """Results of one kind of fault.

    Attributes:
        name: description of the fault.
        runs: number of runs.
        hits: number of faults.
        in_a_save: number of faults during a save.
        most_repeated: largest number of steps that were repeated after a fault.
        problems: failed checks.
    """

    name: str
    runs: int = 0
    hits: int = 0
    in_a_save: int = 0
    most_repeated: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    def check(self, good: bool, problem: str) -> None:
        """Records a problem unless `good`."""
        if not good:
            self.problems.append(problem)

    def markdown(self) -> str:
        """Formats the row of the table."""
        cells = (self.name, self.runs, self.hits, self.in_a_save, self.most_repeated)
        verdict = "; ".join(self.problems) or "nothing lost"
        return "| " + " | ".join(map(str, (*cells, verdict))) + " |"


class Campaign:
    """Runs with faults, each compared with the undisturbed run."""

    def __init__(self, folder: pathlib.Path, seed: int) -> None:
        """Completes the undisturbed run, twice: the second time all programs are compiled.

        Args:
            folder: parent folder of the workdirs.
            seed: PRNG seed for the faults.
        """
        import survival_run

        self.tools, self.folder = survival_run, folder
        self.random = random.Random(seed)
        self.number = 0
        for name in ("warm_up", "undisturbed"):
            started = time.monotonic()
            self.finish(folder / name)
            self.seconds = time.monotonic() - started
        self.undisturbed = folder / "undisturbed"
        self.losses = self.tools.losses(self.undisturbed)

    def workdir(self) -> pathlib.Path:
        """Returns a new workdir."""
        self.number += 1
        return self.folder / f"run{self.number}"

    def finish(self, workdir: pathlib.Path, **options: int) -> list[int | None]:
        """Starts a run, waits for it and returns the exit codes of its processes."""
        running = self.tools.start(workdir, **options)
        for process in running:
            process.join()
        return [process.exitcode for process in running]

    def hit(self, workdir: pathlib.Path, how: Callable) -> int | None:
        """Starts a run and injects a fault at a random time.

        Args:
            workdir: folder of the run.
            how: fault, a function of the process.

        Returns:
            Exit code; None if the run was complete before the fault.
        """
        (process,) = self.tools.start(workdir)
        process.join(self.random.uniform(0, self.seconds))
        if not process.is_alive():
            return None
        how(process)
        process.join()
        return process.exitcode

    def compare(self, row: Row, workdir: pathlib.Path, *, exactly: bool = True) -> None:
        """Checks losses and examples of a complete run."""
        row.runs += 1
        found = self.tools.losses(workdir)
        if exactly:
            row.check(found == self.losses, f"{workdir.name}: losses differ")
        else:
            close = len(found) == len(self.losses) and np.allclose(found, self.losses, rtol=1e-5)
            row.check(close, f"{workdir.name}: losses differ")
        mine, whole = self.tools.noted(workdir), self.tools.noted(self.undisturbed)
        row.check(mine == whole, f"{workdir.name}: examples differ")
        row.check(each_once(mine), f"{workdir.name}: an example is missing or seen twice")

    def resumed(self, row: Row, workdir: pathlib.Path, expected: int, reached: int) -> None:
        """Checks that the last start resumed at step `expected`, after `reached` steps."""
        resumed = [0, *self.tools.resumed_at(workdir)][-1] if expected else 0
        row.check(resumed == expected, f"{workdir.name}: resumed at {resumed}, expected {expected}")
        row.most_repeated = max(row.most_repeated, reached - expected)

    def reached(self, workdir: pathlib.Path) -> int:
        """Newest step that was started."""
        return max(self.tools.noted(workdir), default=0)

    def kill(self) -> Row:
        """Kills runs at random times, also during a save."""
        row = Row("kill -9 at a random moment")
        while row.hits < _KILLS.value:
            workdir = self.workdir()
            while self.hit(workdir, lambda process: process.kill()) is not None:
                row.hits += 1
                row.in_a_save += self.tools.inside_a_save(workdir)
                self._next_start(row, workdir)
            self.compare(row, workdir)
        return row

    def _next_start(self, row: Row, workdir: pathlib.Path) -> None:
        """Stops at the first step of the next start, to check where it resumed."""
        newest = max(self.tools.checkpoints(workdir), default=0)
        reached = self.reached(workdir)
        self.finish(workdir, stop_at=newest + 1)
        self.resumed(row, workdir, newest, reached)

    def stop(self) -> Row:
        """Stops runs at random times: the current step is saved, so no step is repeated."""
        row = Row("SIGTERM at a random moment")
        while row.hits < _SIGTERMS.value:
            workdir = self.workdir()
            while (code := self.hit(workdir, lambda process: process.terminate())) is not None:
                row.hits += 1
                newest = max(self.tools.checkpoints(workdir), default=0)
                reached = self.reached(workdir)
                # Before the handler is installed the signal ends the process at once. During the
                # first step of a start there is nothing to save.
                row.check(code in (_PREEMPTED, -15), f"{workdir.name}: exit code {code}")
                row.check(newest >= reached - 1, f"{workdir.name}: lost {reached - newest} steps")
                row.most_repeated = max(row.most_repeated, reached - newest)
            self.compare(row, workdir)
        return row

    def damage(self) -> Row:
        """Truncates, changes or removes a file of the newest checkpoint."""
        row = Row("newest checkpoint damaged")
        while row.hits < _DAMAGES.value:
            workdir = self.workdir()
            stop_at = self.random.randrange(2 * self.tools.EVERY + 1, self.tools.STEPS)
            self.finish(workdir, stop_at=stop_at)
            *_, previous, newest = self.tools.checkpoints(workdir)
            spoil(workdir / "checkpoints" / str(newest), row.hits, self.random)
            row.hits += 1
            reached = self.reached(workdir)
            self.finish(workdir)
            self.resumed(row, workdir, previous, reached)
            self.compare(row, workdir)
        return row

    def fill(self) -> Row:
        """Fills the disk during a run, and frees it before the next start."""
        row = Row("disk full (tmpfs)")
        with small_disk(self.folder / "disk") as workdir:
            if workdir is None:
                return Row("disk full: skipped, no tmpfs can be mounted")
            (process,) = self.tools.start(workdir)
            while len(self.tools.checkpoints(workdir)) < 2:
                time.sleep(0.01)
            filler = workdir / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while process.is_alive():
                    file.write(bytes(4096))
            process.join()
            row.hits += 1
            row.check(process.exitcode == 2, f"exit code {process.exitcode}")
            newest = max(self.tools.checkpoints(workdir))
            filler.unlink()
            log = (workdir / "log").read_text()
            row.check("No space left on device" in log, "the message does not contain the cause")
            reached = self.reached(workdir)
            self.finish(workdir)
            self.resumed(row, workdir, newest, reached)
            self.compare(row, workdir)
        return row

    def move(self, name: str, places: list[dict[str, int]]) -> Row:
        """Continues a run on other devices or with other numbers of processes.

        Args:
            name: description for the table.
            places: options of `survival_run.start`, one for each part of the run.
        """
        row, workdir = Row(name), self.workdir()
        for number, place in enumerate(places[:-1], start=1):
            stop_at = number * self.tools.STEPS // len(places)
            codes = self.finish(workdir, **place, stop_at=stop_at)
            row.hits += 1
            row.check(set(codes) == {_PREEMPTED}, f"exit codes {codes}")
        codes = self.finish(workdir, **places[-1])
        row.check(set(codes) == {0}, f"exit codes {codes}")
        self.compare(row, workdir, exactly=False)
        return row


def each_once(noted: dict[int, list[str]]) -> bool:
    """Whether every complete epoch contains each example of the source once.

    Args:
        noted: digests of the examples by step.
    """
    import survival_run

    from vit_jax.data.sources import open_source

    source = open_source(survival_run.recipe().data.train)
    every = collections.Counter(survival_run.digest(source[i]["image"]) for i in range(len(source)))
    seen = [name for step in sorted(noted) for name in noted[step]]
    epochs = len(seen) // len(source)
    return epochs > 0 and all(
        collections.Counter(seen[i * len(source) : (i + 1) * len(source)]) == every
        for i in range(epochs)
    )


def spoil(checkpoint: pathlib.Path, how: int, rng: random.Random) -> None:
    """Damages one file of a checkpoint.

    Args:
        checkpoint: folder of the checkpoint.
        how: number of the damage: truncate, change or remove, in turn.
        rng: source of randomness.
    """
    # The marker file of Orbax for file systems without renaming contains no part of the state.
    files = [
        path
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.stat().st_size and path.name != "commit_success.txt"
    ]
    path = rng.choice(files)
    content = path.read_bytes()
    at = rng.randrange(len(content))
    if how % 3 == 0:
        path.write_bytes(content[:at])
    elif how % 3 == 1:
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
    else:
        path.unlink()


@contextlib.contextmanager
def small_disk(place: pathlib.Path) -> Iterator[pathlib.Path | None]:
    """Mounts a tmpfs of 4 MB; yields None where that is not permitted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def main(argv: list[str]) -> None:
    """Injects all faults and prints the table."""
    # Processes are forked from a server that has imported everything, and start within a second.
    os.environ["PYTHONPATH"] = f"{_HERE}:{_HERE.parent}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    sys.path.insert(0, str(_HERE.parent))
    multiprocessing.set_forkserver_preload(["survival_run"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax_cache"
        started = time.monotonic()
        campaign = Campaign(pathlib.Path(folder), _SEED.value)
        print("| fault | runs | faults | during a save | most steps repeated | result |")
        print("|---|--:|--:|--:|--:|---|")
        bad = 0
        devices = [{"devices": 1}, {"devices": 8}, {"devices": 4}]
        processes = [{"count": 2}, {"count": 1}]
        for inject in (
            campaign.kill,
            campaign.stop,
            campaign.damage,
            campaign.fill,
            lambda: campaign.move("1, then 8, then 4 devices", devices),
            lambda: campaign.move("2 processes, then 1", processes),
        ):
            row = inject()
            bad += len(row.problems)
            print(row.markdown(), flush=True)
        minutes = (time.monotonic() - started) / 60
        print(
            f"\n{campaign.number} runs of {campaign.tools.STEPS} steps, a checkpoint every "
            f"{campaign.tools.EVERY} steps; {minutes:.0f} minutes."
        )
    sys.exit(bad > 0)


if __name__ == "__main__":
    app.run(main)
