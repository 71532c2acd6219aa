"""Mutated inputs, see benchmarks/fuzz_data.py."""

import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "fuzz_data.py"


@pytest.mark.release
def test_mutated_data_ends_in_success_counted_examples_or_one_line():
    command = [sys.executable, str(SCRIPT), "--count", "300", "--seconds", "60"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert found.returncode == 0, found.stderr[-5000:]
    assert "0 faults in 300 inputs" in found.stdout
