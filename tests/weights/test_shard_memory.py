"""Memory of reading a part of a checkpoint of several gigabytes (pytest -m release)."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT


@pytest.mark.release
def test_peak_memory_of_shards():
    """The language model of the same files, 3.8 GB, takes no memory."""
    command = [sys.executable, "-m", "benchmarks.shard_memory"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["file_bytes"] > 4e9
    assert 1 < found["ratio"] < 1.3, found
