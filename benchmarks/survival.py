"""Runs that are killed, stopped, damaged and starved of disk, each compared with one that was not.

    python benchmarks/survival.py [--seed 0]

Prints a table in Markdown, and ends with 1 where anything was lost. Of every run it checks:
  - the loss of every step is that of the undisturbed run, bit for bit (on other devices or
    processes, within 1e-5);
  - it goes on from the newest checkpoint that was complete when it was disturbed;
  - in every epoch each example is seen exactly once, by what the training step was given.
Needs Linux; the full disk is a small tmpfs, and left out where none may be mounted.
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

_SEED = flags.DEFINE_integer("seed", 0, "Of the moments and files that are hit.")
_KILLS = flags.DEFINE_integer("kills", 50, "Times that a run is killed.")
_SIGTERMS = flags.DEFINE_integer("sigterms", 20, "Times that a run is told to stop.")
_DAMAGES = flags.DEFINE_integer("damages", 10, "Checkpoints that are damaged.")

_HERE = pathlib.Path(__file__).resolve().parent
_PREEMPTED = 75


@dataclasses.dataclass
class Row:
    """What happened to the runs of one kind of disturbance."""

    name: str
    runs: int = 0
    hits: int = 0
    in_a_save: int = 0
    most_repeated: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    def check(self, good: bool, problem: str) -> None:
        """Notes a problem unless something is good."""
        if not good:
            self.problems.append(problem)

    def markdown(self) -> str:
        """The row of the table."""
        cells = (self.name, self.runs, self.hits, self.in_a_save, self.most_repeated)
        verdict = "; ".join(self.problems) or "nothing lost"
        return "| " + " | ".join(map(str, (*cells, verdict))) + " |"


class Campaign:
    """Runs one after another, each compared with the undisturbed one."""

    def __init__(self, folder: pathlib.Path, seed: int):
        """Makes the undisturbed run, the second time with all programs compiled."""
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
        """A fresh one."""
        self.number += 1
        return self.folder / f"run{self.number}"

    def finish(self, workdir: pathlib.Path, **options: int) -> list[int | None]:
        """Starts a run and waits for it; gives the exit codes of its processes."""
        running = self.tools.start(workdir, **options)
        for process in running:
            process.join()
        return [process.exitcode for process in running]

    def hit(self, workdir: pathlib.Path, how: Callable) -> int | None:
        """Starts a run and hits it at a random moment; its exit code, or None if it was faster."""
        (process,) = self.tools.start(workdir)
        process.join(self.random.uniform(0, self.seconds))
        if not process.is_alive():
            return None
        how(process)
        process.join()
        return process.exitcode

    def compare(self, row: Row, workdir: pathlib.Path, *, exactly: bool = True) -> None:
        """Losses and examples of a run that has ended."""
        row.runs += 1
        found = self.tools.losses(workdir)
        if exactly:
            row.check(found == self.losses, f"{workdir.name}: other losses")
        else:
            close = len(found) == len(self.losses) and np.allclose(found, self.losses, rtol=1e-5)
            row.check(close, f"{workdir.name}: other losses")
        mine, whole = self.tools.noted(workdir), self.tools.noted(self.undisturbed)
        row.check(mine == whole, f"{workdir.name}: other examples")
        row.check(each_once(mine), f"{workdir.name}: an example missed or seen twice")

    def resumed(self, row: Row, workdir: pathlib.Path, expected: int, reached: int) -> None:
        """Whether the last start went on from `expected`, after `reached` steps."""
        resumed = [0, *self.tools.resumed_at(workdir)][-1] if expected else 0
        row.check(resumed == expected, f"{workdir.name}: from {resumed}, not {expected}")
        row.most_repeated = max(row.most_repeated, reached - expected)

    def reached(self, workdir: pathlib.Path) -> int:
        """Steps that were begun."""
        return max(self.tools.noted(workdir), default=0)

    def kill(self) -> Row:
        """kill -9 at any moment, also within a save."""
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
        """Stops at the first step of the next start, to see where it went on."""
        newest = max(self.tools.checkpoints(workdir), default=0)
        reached = self.reached(workdir)
        self.finish(workdir, stop_at=newest + 1)
        self.resumed(row, workdir, newest, reached)

    def stop(self) -> Row:
        """SIGTERM at any moment: saved at the step at hand, so that none is done again."""
        row = Row("SIGTERM at a random moment")
        while row.hits < _SIGTERMS.value:
            workdir = self.workdir()
            while (code := self.hit(workdir, lambda process: process.terminate())) is not None:
                row.hits += 1
                newest = max(self.tools.checkpoints(workdir), default=0)
                reached = self.reached(workdir)
                # Before it listens the signal ends it at once, and there is nothing to save; so it
                # does within the first step of a start.
                row.check(code in (_PREEMPTED, -15), f"{workdir.name}: exit code {code}")
                row.check(newest >= reached - 1, f"{workdir.name}: lost {reached - newest} steps")
                row.most_repeated = max(row.most_repeated, reached - newest)
            self.compare(row, workdir)
        return row

    def damage(self) -> Row:
        """Files of the newest checkpoint are cut short, changed or removed."""
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
        """A disk that is full in the middle of the run, and has room again afterwards."""
        row = Row("disk full (tmpfs)")
        with small_disk(self.folder / "disk") as workdir:
            if workdir is None:
                return Row("disk full: no tmpfs may be mounted here")
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
            said = (workdir / "log").read_text()
            row.check("No space left on device" in said, "the message does not name the cause")
            reached = self.reached(workdir)
            self.finish(workdir)
            self.resumed(row, workdir, newest, reached)
            self.compare(row, workdir)
        return row

    def move(self, name: str, places: list[dict[str, int]]) -> Row:
        """The same run in one place after another."""
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
    """Whether each whole epoch holds every example of the source once."""
    import survival_run

    from vit_jax.data.sources import open_source

    source = open_source(survival_run.recipe().data.train)
    size = survival_run.recipe().model.image_size
    assert source[0]["image"].shape == (size, size, 3)
    every = collections.Counter(survival_run.digest(row["image"]) for row in source)  # type: ignore
    seen = [name for step in sorted(noted) for name in noted[step]]
    epochs = len(seen) // len(source)
    return epochs > 0 and all(
        collections.Counter(seen[i * len(source) : (i + 1) * len(source)]) == every
        for i in range(epochs)
    )


def spoil(checkpoint: pathlib.Path, how: int, rng: random.Random) -> None:
    """Damages one file of a checkpoint: cuts, changes or removes it."""
    # The marker that Orbax leaves for file systems without renaming holds nothing of the state.
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
    """A tmpfs of 4 MB; None where none may be mounted."""
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
    """Runs all and prints the table."""
    # Children are forked from a server that has imported everything: they start in a second.
    os.environ["PYTHONPATH"] = f"{_HERE}:{_HERE.parent}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    sys.path.insert(0, str(_HERE.parent))
    multiprocessing.set_forkserver_preload(["survival_run"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax_cache"
        started = time.monotonic()
        campaign = Campaign(pathlib.Path(folder), _SEED.value)
        print("| disturbance | runs | times | within a save | steps done again, at most | result |")
        print("|---|--:|--:|--:|--:|---|")
        bad = 0
        devices = [{"devices": 1}, {"devices": 8}, {"devices": 4}]
        processes = [{"count": 2}, {"count": 1}]
        for disturb in (
            campaign.kill,
            campaign.stop,
            campaign.damage,
            campaign.fill,
            lambda: campaign.move("1, then 8, then 4 devices", devices),
            lambda: campaign.move("2 processes, then 1", processes),
        ):
            row = disturb()
            bad += len(row.problems)
            print(row.markdown(), flush=True)
        minutes = (time.monotonic() - started) / 60
        print(
            f"\n{campaign.number} runs of {campaign.tools.STEPS} steps, a checkpoint each "
            f"{campaign.tools.EVERY}; {minutes:.0f} minutes."
        )
    sys.exit(bad > 0)


if __name__ == "__main__":
    app.run(main)
