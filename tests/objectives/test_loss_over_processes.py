"""Every form of the contrastive loss over several real processes, against float64 by hand."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import reference
from test_contrastive_loss import BIAS, make_pairs

from tests.helpers import fast_flags
from vit_jax.objectives.contrastive import FORMS, LOSSES

HERE = pathlib.Path(__file__).parent


@pytest.mark.release
@pytest.mark.parametrize(("count", "devices"), [(2, 4), (4, 1)])
def test_equals_reference(tmp_path, count, devices):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "PYTHONPATH": str(HERE.parents[1]),
        "XLA_FLAGS": f"{fast_flags()} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, str(HERE / "loss_process.py"), str(tmp_path / "found.npz")]
    running = [
        subprocess.Popen(
            command, env={**environment, "JAX_PROCESS_ID": str(i)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(count)
    ]  # fmt: skip
    for process in running:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    found = np.load(tmp_path / "found.npz")
    for loss in LOSSES:
        expected = reference.contrastive(*make_pairs(), 10.0, BIAS[loss], loss)
        for form in FORMS:
            for name in ("loss", "image", "text", "scale", "bias"):
                wanted = np.asarray(getattr(expected, name))
                error = np.linalg.norm(found[f"{loss} {form} {name}"] - wanted)
                assert error <= 1e-6 * np.linalg.norm(wanted), f"{loss} {form} {name}: {error}"
