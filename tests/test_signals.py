"""SIGTERM and Ctrl-C at any moment of a command: one line, an exit code, nothing half-written.

All moments of a training run are in benchmarks/survival_signals.py.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import survival_signals
from tests.helpers import ROOT
from vit_jax.atomic_files import atomic_write, remove_partial_files
from vit_jax.data.preparation import prepare

RECIPE = "configs/vit_mnist5k.py"


def start(command, *args, before=()):
    """Starts a command, or one that starts it, in a process group of its own like a terminal."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", f"vit_jax.{command}", *map(str, args)],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_until(condition, process):
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def end(process, number):
    """Sends a signal to the whole group; returns exit code, seconds and the output."""
    began = time.monotonic()
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, time.monotonic() - began, stderr


@pytest.mark.parametrize(
    ("command", "args", "number", "code", "line"),
    [
        ("train", ("--config", RECIPE), signal.SIGTERM, 75, "before the first step; the same"),
        ("evaluate", (), signal.SIGINT, 130, "stopped; the same command starts again, with"),
        ("convert", ("--output", "x", "--to", "vit_jax"), signal.SIGTERM, 143, "--overwrite"),
    ],
)  # fmt: skip
def test_from_the_first_line_of_a_command(command, args, number, code, line, tmp_path):
    process = start(command, *args, "--workdir", tmp_path / "run")
    wait_until(lambda: survival_signals.is_watching(process.pid), process)
    found, seconds, stderr = end(process, number)
    assert found == code, stderr
    assert seconds < 2
    assert line in stderr
    assert len(stderr.splitlines()) == 1


def test_a_signal_that_waits_for_the_command_to_begin(tmp_path):
    send_to_itself = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = start(
        "evaluate", "--workdir", tmp_path, before=(sys.executable, "-c", send_to_itself)
    )
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.startswith("stopped; the same command starts again, with")
    assert stderr.count("\n") == 1


def test_while_the_step_is_compiled(tmp_path):
    workdir = tmp_path / "run"
    small = ("width=16", "depth=1", "num_heads=2", "mlp_dim=32")
    process = start(
        "train", "--config", RECIPE, "--workdir", workdir, "--config.data.train=digits:train",
        *(f"--config.model.{key}" for key in small),
    )  # fmt: skip
    wait_until((workdir / "checkpoints").is_dir, process)
    code, seconds, stderr = end(process, signal.SIGINT)
    assert (code, "Traceback" in stderr) == (75, False), stderr
    assert seconds < 2
    assert stderr.splitlines()[-1] == (
        "stopped before the first step; the same command starts again"
    )
    assert not list(tmp_path.rglob("*.partial"))


def test_prepare_stops_at_once_and_goes_on(tmp_path):
    rng, images, output = np.random.default_rng(0), tmp_path / "images", tmp_path / "out"
    (images / "a").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (1500, 1500, 3), np.uint8)).save(tmp_path / "image.bmp")
    for i in range(48):  # several seconds of work
        (images / "a" / f"{i:03d}.bmp").symlink_to(tmp_path / "image.bmp")
    arguments = {"shards": 24, "image_size": 800, "format": "tar"}
    flags = [f"--{key}={value}" for key, value in arguments.items()]
    flags += ["--input", f"folder:{images}", "--output", output]
    # Shells start jobs in the background so that they ignore Ctrl-C.
    ignore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    before = (sys.executable, "-c", f"{ignore}; os.execv(sys.argv[1], sys.argv[1:])")
    for shard, number in (("00000.tar", signal.SIGTERM), ("00001.tar", signal.SIGINT)):
        process = start("data.prepare", *flags, before=before)
        wait_until((output / shard).exists, process)
        code, seconds, stderr = end(process, number)
        assert code == 75, stderr
        assert seconds < 2
        assert "stopped; the same command writes the shards that are missing\n" in stderr
        assert "Traceback" not in stderr
    written = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert 0 < len(written) < 24
    kept = json.loads((output / "manifest.json").read_text())["shards"]
    manifest = prepare(
        f"folder:{images}", output, format="tar", shards_count=24, image_size=800
    )  # fmt: skip
    assert manifest["examples"] == 48
    assert all((output / name).stat().st_mtime_ns == written[name] for name in kept)


def test_partial_files_are_removed(tmp_path):
    with contextlib.suppress(FileNotFoundError), atomic_write(tmp_path / "x") as partial:
        partial.write_text("half")
        remove_partial_files()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.release
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1, 2])
def test_forty_moments(count, tmp_path):
    assert survival_signals.campaign(tmp_path, count, rounds=5) == []
