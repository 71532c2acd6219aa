"""One run of `survival.py`, in its own process.

Besides the files of every run it writes a log with the examples of each step.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
from multiprocessing.process import BaseProcess
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.config import default_config
from vit_jax.errors import Interrupted, UserError
from vit_jax.experiment import Experiment, train
from vit_jax.parallel import processes

STEPS, EVERY, BATCH = 120, 5, 32
EXAMPLES = "examples-{}.jsonl"  # one file per process: {"step", "examples": digests}


def recipe() -> ConfigDict:
    """ViT with 5,000 parameters on scikit-learn's digits, a checkpoint every 5 steps."""
    config = default_config(model="deit_ti16", objective="classification")
    config.model.update(
        image_size=8, patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32, num_classes=10
    )
    config.model.inputs.crop_fraction = 1.0
    config.data.train = "digits:train"
    config.batch_size = BATCH
    config.total_steps = STEPS
    config.log_steps = 1
    config.checkpoint_percent = 0.0
    config.checkpoint_steps = EVERY
    config.optim.lr = 3e-3
    return config


def start(
    workdir: pathlib.Path, *, devices: int = 1, count: int = 1, stop_at: int = 0
) -> list[BaseProcess]:
    """Starts or resumes a run.

    Args:
        workdir: folder of the run.
        devices: number of simulated devices per process.
        count: number of processes.
        stop_at: step at which the run sends SIGTERM to itself; 0 for none.

    Returns:
        The processes.
    """
    context = multiprocessing.get_context("forkserver")
    environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
        environment["JAX_NUM_PROCESSES"] = str(count)
    workdir.mkdir(parents=True, exist_ok=True)
    started = []
    for index in range(count):
        own = {**environment, **({"JAX_PROCESS_ID": str(index)} if count > 1 else {})}
        process = context.Process(target=_main, args=(workdir, own, stop_at))
        process.start()
        started.append(process)
    return started


def _main(workdir: pathlib.Path, environment: dict[str, str], stop_at: int) -> None:
    """Trains, with the exit codes of `vit_jax.train`."""
    os.environ.update(environment)
    log = os.open(workdir / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    processes.start()
    plain = Experiment.train_step.func
    noted_step = functools.cached_property(lambda e: _noted(plain(e), workdir, stop_at))
    noted_step.__set_name__(Experiment, "train_step")
    Experiment.train_step = noted_step
    try:
        train(recipe(), workdir)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _noted(plain: Any, workdir: pathlib.Path, stop_at: int) -> Any:
    """Wraps the training step: logs its number and its examples before it runs."""
    path = _outside(workdir) / EXAMPLES.format(jax.process_index())

    def step(state: Any, batch: dict[str, jax.Array]) -> Any:
        number = int(state.step) + 1
        line = {"step": number, "examples": [digest(row) for row in _rows(batch["image"])]}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(state, batch)

    return step


def _outside(workdir: pathlib.Path) -> pathlib.Path:
    """Folder of the logs, outside the workdir, whose disk may be full."""
    folder = workdir.with_name(f"{workdir.name}-notes")
    folder.mkdir(exist_ok=True)
    return folder


def _rows(images: jax.Array) -> np.ndarray:
    """Rows of a global batch that lie on the devices of this process, in order."""
    shards = sorted(images.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def digest(image: np.ndarray) -> str:
    """Digest of an image's pixels."""
    return hashlib.sha1(np.ascontiguousarray(image).tobytes()).hexdigest()[:12]


def noted(workdir: pathlib.Path) -> dict[int, list[str]]:
    """Digests of the examples by step, from its last execution; truncated lines are ignored."""
    parts: list[dict[int, list[str]]] = []
    for path in sorted(_outside(workdir).glob(EXAMPLES.format("*"))):
        lines = [x for x in path.read_text(encoding="utf-8").splitlines() if x.endswith("]}")]
        parts.append({x["step"]: x["examples"] for x in map(json.loads, lines)})
    return {
        step: [name for part in parts for name in part.get(step, ())]
        for step in sorted(set().union(*parts))
    }


def losses(workdir: pathlib.Path) -> list[float]:
    """Losses of all steps, from `metrics.jsonl`."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [x["loss"] for x in map(json.loads, lines) if "loss" in x]


def checkpoints(workdir: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    folder = workdir / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit())


def inside_a_save(workdir: pathlib.Path) -> bool:
    """Whether there is an incomplete checkpoint."""
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def resumed_at(workdir: pathlib.Path) -> list[int]:
    """Steps at which the run resumed, from its log."""
    text = (workdir / "log").read_text(encoding="utf-8", errors="replace")
    return [int(line.split()[-1].rstrip(".")) for line in text.splitlines() if "Resuming" in line]
