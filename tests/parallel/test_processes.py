"""Several real processes over gloo: the same losses as one, errors instead of hangs."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import fast_flags
from vit_jax import launchers
from vit_jax.errors import UserError
from vit_jax.evaluators.predictions import load_all
from vit_jax.parallel import processes

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = ROOT / "tests" / "parallel" / "recipe.py"


def start(workdir, count, *args, recipe=RECIPE, devices=4):
    environment = {
        **os.environ,
        "XLA_FLAGS": fast_flags(),
        "JAX_LOCAL_DEVICES": str(devices),
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [ROOT / "launch" / "local.sh", str(count), "--config", recipe, "--workdir", workdir]
    return subprocess.Popen(
        [*map(str, command), *args], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process, code=0):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def metrics(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(workdir):
    return [line["loss"] for line in metrics(workdir) if "loss" in line]


@pytest.mark.parametrize(
    ("devices", "fsdp"),
    [
        (1, 2),
        pytest.param(4, 1, marks=pytest.mark.release),
        pytest.param(4, 8, marks=pytest.mark.release),
    ],
)
def test_two_processes_equal_one_although_one_is_killed(finished_run, tmp_path, devices, fsdp):
    """The survivor ends; the launcher saves on SIGTERM; the same command continues each time."""
    mesh = f"--config.mesh.fsdp={fsdp}"
    process = start(tmp_path, 2, mesh, recipe=f"{RECIPE}:kill", devices=devices)
    output, _ = process.communicate(timeout=200)
    assert process.returncode not in (0, 75), output
    assert f"2 processes (environment), {2 * devices} devices." in output
    assert len(losses(tmp_path)) < 10
    assert time.time() - (tmp_path / "metrics.jsonl").stat().st_mtime < 60
    output = finish(start(tmp_path, 2, mesh, recipe=f"{RECIPE}:stop", devices=devices), code=75)
    assert f"Resuming {tmp_path} at step 4" in output
    saved = output.partition("stopped and saved at step ")[2].split()[0]
    output = finish(start(tmp_path, 2, mesh, devices=devices))
    assert f"Resuming {tmp_path} at step {saved}" in output
    one_process, _ = finished_run  # the same recipe
    np.testing.assert_allclose(losses(tmp_path), losses(one_process), rtol=1e-5)
    assert output.count("zeroshot/digits/top1") == 1  # process 0 speaks for both
    one, two = (load_all(workdir)["zeroshot/digits"] for workdir in (one_process, tmp_path))
    np.testing.assert_array_equal(one["label"], two["label"])
    np.testing.assert_allclose(one["probability"], two["probability"], atol=1e-4)
    found, expected = metrics(tmp_path)[-1], metrics(one_process)[-1]
    # Parameters differ by rounding, and with them the calibration error. The others count images.
    error = "zeroshot/digits/ece"
    assert found.pop(error) == pytest.approx(expected.pop(error), rel=1e-5)
    assert found == expected


def test_nobody_answers():
    """A coordinator that is not there: an error within the limit."""
    code = "from vit_jax.parallel import processes; processes.start(timeout=3)"
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True,
        check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode != 0
    assert time.monotonic() - began < 60


def test_unequal_software_is_refused(tmp_path):
    """One of two processes finds another optax: both end, and say which has what."""
    fake = tmp_path / "other" / "optax-99.0.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 99.0\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", "from vit_jax.parallel import processes; processes.start(60)"],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
                "PYTHONPATH": os.pathsep.join([str(fake.parent)] * i + [str(ROOT)]),
            },
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=100)[0] for process in running]
    assert all(process.returncode for process in running), outputs
    assert "optax 99.0" in outputs[1]
    for output in outputs:
        assert "processes [1] run other software than process 0" in output


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is not a number: set all three"):
        processes.start()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, "Slurm"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_who_started_us(monkeypatch, environment, expected):
    for key in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "SLURM_STEP_ID", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    found = launchers.find()
    assert (found and found[0]) == expected
