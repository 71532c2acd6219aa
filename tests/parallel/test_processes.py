"""Several real processes over gloo: the same losses as one, errors instead of hangs."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from vit_jax import launchers
from vit_jax.errors import UserError
from vit_jax.parallel import processes

ROOT = pathlib.Path(__file__).parents[2]
SHRINK = (
    "--config.data.train=digits:train",
    "--config.data.group_by=()",
    "--config.data.augment=affine|color_shift",
    "--config.model.image.image_size=8",
    "--config.model.image.width=32",
    "--config.model.image.num_heads=2",
    "--config.model.image.depth=2",
    "--config.model.image.patch_dropout=0",
    "--config.model.text.depth=1",
    "--config.batch_size=32",
    "--config.log_steps=1",
    "--config.eval_batch_size=64",
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The emoji recipe without its evaluations, which need the emoji."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(
        "from configs import clip_emoji\n\n\n"
        "def get_config(arg=''):\n"
        "    config = clip_emoji.get_config(arg)\n"
        "    config.evals = {'zeroshot': {'digits': {'data': 'digits:test[:50]'}}}\n"
        "    return config\n"
    )
    return path


def start(recipe, workdir, count, *args, devices=4):
    environment = {
        **os.environ,
        # The launcher's own number of devices comes after that of the tests and wins.
        "JAX_LOCAL_DEVICES": str(devices),
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [ROOT / "launch" / "local.sh", str(count), "--config", recipe, "--workdir", workdir]
    return subprocess.Popen(
        [*map(str, command), *SHRINK, *args], cwd=ROOT, env=environment, text=True,
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


@pytest.fixture(scope="module")
def one_process(recipe, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    finish(start(recipe, workdir, 1, "--config.total_steps=10", devices=1))
    return workdir


@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.release), 8])
def test_two_processes_of_four_devices_equal_one(recipe, one_process, tmp_path, fsdp):
    args = ("--config.total_steps=10", f"--config.mesh.fsdp={fsdp}")
    output = finish(start(recipe, tmp_path, 2, *args))
    assert "2 processes (environment), 8 devices." in output
    np.testing.assert_allclose(losses(tmp_path), losses(one_process), rtol=1e-5)
    assert output.count("zeroshot/digits/top1") == 1  # process 0 speaks for both
    found, expected = metrics(tmp_path)[-1], metrics(one_process)[-1]
    # Parameters differ by rounding, and with them the calibration error. The others count images.
    error = "zeroshot/digits/ece"
    assert found.pop(error) == pytest.approx(expected.pop(error), rel=1e-5)
    assert found == expected


def wait_for_steps(workdir, process, count):
    deadline = time.monotonic() + 200
    while len(losses(workdir)) < count:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)


def children(process):
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "vit_jax.train"], text=True, capture_output=True,
        check=True,
    )  # fmt: skip
    return sorted(map(int, found.stdout.split()))


def test_a_killed_process_ends_the_other_and_the_run_resumes(recipe, tmp_path):
    args = ("--config.total_steps=100000", "--config.checkpoint_percent=0.01")
    process = start(recipe, tmp_path, 2, *args)
    wait_for_steps(tmp_path, process, 15)
    os.kill(children(process)[1], signal.SIGKILL)
    killed = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode not in (0, 75)
    reached = len(losses(tmp_path))
    saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert saved >= 10
    process = start(recipe, tmp_path, 2, *args)
    wait_for_steps(tmp_path, process, reached + 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert f"Resuming {tmp_path} at step {saved}" in output


def test_nobody_answers(monkeypatch):
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


def test_unequal_software_is_refused(recipe, tmp_path):
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
