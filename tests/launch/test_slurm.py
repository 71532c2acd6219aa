"""The Slurm script on a real Slurm: two tasks train, are preempted, requeued, and finish."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from tests.helpers import ROOT, fast_flags
from tests.launch import slurm_cluster

RECIPE = ("--config", "tests/launch/recipe.py")


def losses(workdir):
    """Losses by step so far; the last line may be incomplete."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return {line["step"]: line["loss"] for line in found}


def wait(done, log, state, seconds=120):
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            text = log.read_text() if log.exists() else "the job did not start"
            pytest.fail(f"{text}\n{state()}")
        time.sleep(0.1)


@pytest.mark.slow
def test_preempted_job_is_requeued_and_equals_one_process(tmp_path):
    if reason := slurm_cluster.missing_requirement():
        pytest.skip(reason)
    environment = {**os.environ, "XLA_FLAGS": fast_flags(), "VIT_JAX_PYTHON": sys.executable}
    one = [sys.executable, "-m", "vit_jax.train", *RECIPE, "--workdir", str(tmp_path / "one")]
    subprocess.run(one, cwd=ROOT, env=environment, check=True, capture_output=True)

    log = tmp_path / "job.log"
    # The path of a socket has at most 107 characters, and sockets of steps are deep in the folder
    # of the cluster: `tmp_path` is too long under pytest-xdist.
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        slurm_cluster.cluster(pathlib.Path(folder)) as slurm,
    ):
        command = [
            "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={log}",
            "launch/slurm.sbatch", *RECIPE, "--workdir", str(tmp_path / "two"),
        ]  # fmt: skip
        submitted = subprocess.run(
            command, cwd=ROOT, env={**environment, **slurm, "XLA_FLAGS": fast_flags()},
            text=True, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        job = submitted.stdout.strip()

        def state():
            return state_of(job, slurm)

        wait(lambda: len(losses(tmp_path / "two")) > 5, log, state)
        subprocess.run(["scancel", "--signal=TERM", job], env=slurm, check=True)
        wait(lambda: len(losses(tmp_path / "two")) == 200, log, state)
        wait(lambda: "JobState=COMPLETED" in state(), log, state)
        assert "Restarts=1" in state()

    text = log.read_text()
    assert "2 processes (Slurm), 2 devices." in text
    assert "preempted: requeued" in text
    stopped = int(text.partition("stopped and saved at step ")[2].split()[0])
    assert f"at step {stopped}." in text.partition("Resuming ")[2]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(two) == list(one)
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)


def state_of(job, slurm):
    shown = subprocess.run(
        ["scontrol", "show", "job", job], env=slurm, text=True, capture_output=True, check=True
    )
    return shown.stdout
