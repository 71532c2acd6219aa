"""Whole sweeps in processes of their own: killed twice, and as an array of a real Slurm."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from tests.helpers import ROOT, fast_flags
from tests.launch import slurm_cluster

SWEEP = ("--config", "tests/sweeping/recipe.py", "--config.total_steps=6")
ENVIRONMENT = {**os.environ, "XLA_FLAGS": fast_flags(), "VIT_JAX_PYTHON": sys.executable}

pytestmark = [pytest.mark.release, pytest.mark.timeout(1800)]


def start(workdir, *arguments, **options):
    command = [sys.executable, "-m", "vit_jax.sweep", *SWEEP, "--workdir", str(workdir), *arguments]
    options = {"env": ENVIRONMENT, "text": True, "stdout": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, **options)


def results(workdir):
    found = {
        path.parent.name: json.loads(path.read_text()) for path in workdir.glob("*/result.json")
    }
    return {name: result["metrics"] for name, result in sorted(found.items())}


def lines(printed):
    """Cells of the header and of the metrics of evaluations."""
    kept = ("last", "classification")
    return [line.split() for line in printed.splitlines() if line.startswith(kept)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of a sweep of four variants with two seeds, and the table that it prints."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    process = start(workdir)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return results(workdir), printed


def test_killed_twice_it_ends_with_the_same_table(undisturbed, tmp_path):
    expected, table = undisturbed
    assert len(expected) == 8
    header, *metrics = lines(table)
    assert header.count("seeds)") == 4
    assert metrics
    for finished in (1, 4):
        process = start(tmp_path)
        while len(results(tmp_path)) < finished:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        assert process.returncode == 75, errors
        assert len(results(tmp_path)) < 8
    process = start(tmp_path)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert results(tmp_path) == expected
    assert lines(printed) == lines(table)


def test_a_slurm_array_trains_the_same(undisturbed, tmp_path):
    if reason := slurm_cluster.missing_requirement():
        pytest.skip(reason)
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        slurm_cluster.cluster(pathlib.Path(folder)) as slurm,
    ):
        options = ["--", "--wait", f"--output={tmp_path}/job-%a.log"]
        process = start(
            tmp_path / "runs", "--executor=slurm", *options, env={**ENVIRONMENT, **slurm}
        )
        printed, errors = process.communicate()
    assert process.returncode == 0, errors + "".join(x.read_text() for x in tmp_path.glob("*.log"))
    assert results(tmp_path / "runs") == undisturbed[0]
    assert lines(printed) == lines(undisturbed[1])
