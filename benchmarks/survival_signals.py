"""Signals at every stage of a run: SIGTERM and SIGINT, to one process or to all of them.

    python benchmarks/survival_signals.py [--processes 1,2] [--rounds 5]

A round starts the command `vit-jax train` again and again in one workdir, and sends a signal at
each stage of `STAGES` in turn. Each process has to end with 0 or 75, and the run has to end with
the losses of an undisturbed one, bit for bit. Prints a Markdown table; the exit code is 1 if a
check fails.
"""

import collections
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from absl import app, flags

_PROCESSES = flags.DEFINE_list("processes", ["1", "2"], "Numbers of processes.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Signals per stage.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAGES = ("start", "data", "compile", "steps", "restore", "evaluation", "save", "end")
TOTAL, EVERY = 240, 24  # steps of a run, and between evaluations
LIMIT = 300.0  # seconds until a signalled process must have ended
RECIPE = f"""
from vit_jax.config import default_config

def get_config(arg=""):
    config = default_config(model="deit_ti16", objective="classification")
    config.model.update(
        image_size=8, patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32, num_classes=10
    )
    config.model.inputs.crop_fraction = 1.0
    config.data.train = "digits:train"
    config.batch_size, config.eval_batch_size = 32, 64
    config.total_steps, config.log_steps = {TOTAL}, 1
    config.checkpoint_percent, config.checkpoint_steps = 0.0, 20
    config.eval_steps = {EVERY}
    config.evals.classification = {{"digits": {{"data": "digits:test"}}}}
    config.optim.lr = 3e-3
    return config
"""


class Command:
    """The processes of one start of a run."""

    def __init__(
        self, recipe: pathlib.Path, workdir: pathlib.Path, count: int = 1, *, compiles: bool = False
    ) -> None:
        """Starts them.

        Args:
            recipe: file of the recipe.
            workdir: folder of the run.
            count: number of processes.
            compiles: whether programs of earlier starts are compiled again.
        """
        self.workdir, self.log = workdir, workdir.with_name(f"{workdir.name}.log")
        self._seen = self.log.stat().st_size if self.log.exists() else 0
        self.steps_before = len(losses(workdir))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        several = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        # One simulated device per process, and no preparation of libtpu.
        shared = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        shared["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        shared["JAX_COMPILATION_CACHE_DIR"] = "" if compiles else f"{workdir.parent}/cache{count}"
        self.processes = []
        with self.log.open("ab") as log:
            for index in range(count):
                own = {**several, "JAX_PROCESS_ID": str(index)} if count > 1 else {}
                command = [sys.executable, "-m", "vit_jax.train"]
                command += ["--config", str(recipe), "--workdir", str(workdir)]
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env={**shared, **own}, stdout=log, stderr=log
                    )
                )

    def text(self) -> str:
        """Output of this start so far."""
        with self.log.open("rb") as file:
            file.seek(self._seen)
            return file.read().decode(errors="replace")

    def is_at(self, stage: str) -> bool:
        """Whether a stage has begun."""
        if stage in ("start", "data"):
            return all(is_watching(process.pid) for process in self.processes)
        if stage == "compile":
            return "step/s]" in self.text()
        if stage == "restore":
            return "Resuming" in self.text()
        if stage == "save":
            return any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        done = len(losses(self.workdir))
        if stage == "steps":
            return done >= self.steps_before + 3
        if stage == "evaluation":
            return done > self.steps_before and done % EVERY == 0
        return done == TOTAL

    def wait_for(self, stage: str, delay: float) -> None:
        """Waits until some time after the beginning of a stage, or until the run has ended."""
        while not self.is_at(stage) and self.is_running():
            time.sleep(0.005)
        time.sleep(delay)

    def is_running(self) -> bool:
        """Whether any process is running."""
        return any(process.poll() is None for process in self.processes)

    def finish(self) -> list[int]:
        """Waits for all processes, kills them after `LIMIT`, and returns their exit codes."""
        deadline = time.monotonic() + LIMIT
        for process in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in self.processes]


def losses(workdir: pathlib.Path) -> list[float]:
    """Losses of the steps so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["loss"] for line in lines if line.endswith("}") and '"loss"' in line]


def is_watching(pid: int) -> bool:
    """Whether a command has begun: SIGTERM waits for it."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False
    mask = re.search(r"SigBlk:\s*(\w+)", status)
    return mask is not None and bool(int(mask[1], 16) >> (signal.SIGTERM - 1) & 1)


def delay_of(stage: str, number: int, rng: random.Random) -> float:
    """Seconds between the beginning of a stage and the signal."""
    if stage == "start":
        return 0.1 * number
    longest = {"data": 5.0, "compile": 3.0, "restore": 2.0, "end": 1.0}.get(stage, 0.3)
    return rng.uniform(0, longest)


def campaign(folder: pathlib.Path, count: int, rounds: int) -> list[str]:
    """Sends all signals to runs of `count` processes, and prints a row per stage.

    Args:
        folder: folder for the workdirs.
        count: number of processes.
        rounds: signals per stage.

    Returns:
        Failed checks.
    """
    recipe, rng = folder / "recipe.py", random.Random(count)
    recipe.write_text(RECIPE, encoding="utf-8")
    whole = Command(recipe, folder / f"whole{count}", count)
    problems = [f"undisturbed: {codes}"] if any(codes := whole.finish()) else []
    expected = losses(whole.workdir)
    ends: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    slowest: dict[str, float] = collections.defaultdict(float)
    for number in range(rounds):
        workdir = folder / f"run{count}_{number}"
        for stage in STAGES:
            run = Command(recipe, workdir, count, compiles=stage == "compile")
            run.wait_for(stage, delay_of(stage, number, rng))
            kind = signal.SIGTERM if number % 2 == 0 else signal.SIGINT
            targets = run.processes if number % 3 == 0 else [rng.choice(run.processes)]
            started = time.monotonic()
            for process in targets:
                process.send_signal(kind)
            codes = run.finish()
            slowest[stage] = max(slowest[stage], time.monotonic() - started)
            ends[stage].update(map(str, codes))
            if not set(codes) <= {0, 75} or "Traceback" in run.text():
                problems.append(f"{workdir.name}, {stage}, {kind.name}: {codes}")
                print(problems[-1], run.text()[-3000:], sep="\n", file=sys.stderr)
        last = Command(recipe, workdir, count)
        if any(codes := last.finish()) or losses(workdir) != expected:
            problems.append(f"{workdir.name}: {codes}, or its losses differ")
    for stage in STAGES:
        found = ", ".join(f"{n} x {code}" for code, n in sorted(ends[stage].items()))
        print(f"| {count} | {stage} | {rounds} | {found} | {slowest[stage]:.1f} s |", flush=True)
    return problems


def main(argv: list[str]) -> None:
    """Runs the campaigns and prints the table."""
    print("| processes | stage | signals | exit codes | slowest end |\n|--:|---|--:|---|--:|")
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, _PROCESSES.value):
            problems += campaign(pathlib.Path(folder), count, _ROUNDS.value)
    print("\n" + ("\n".join(problems) or "Every run ended with the losses of an undisturbed one."))
    sys.exit(bool(problems))


if __name__ == "__main__":
    app.run(main)
