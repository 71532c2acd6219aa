"""Mutated inputs, see benchmarks/fuzz.py."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT, fast_flags


@pytest.mark.release
def test_mutated_inputs_end_in_success_counted_examples_or_one_line():
    command = [sys.executable, "-m", "benchmarks.fuzz", "--count", "300", "--seconds", "60"]
    env = {**os.environ, "XLA_FLAGS": fast_flags()}
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert found.returncode == 0, found.stderr[-5000:]
    assert "0 faults in 300 inputs" in found.stdout
