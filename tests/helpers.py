"""Helpers that several test modules import; what is set up and torn down is in conftest.py."""

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import experiment
from vit_jax.config import default_config
from vit_jax.errors import Interrupted

ROOT = pathlib.Path(__file__).parents[1]


def tiny_clip() -> ConfigDict:
    """CLIP with 30,000 parameters on scikit-learn's digits, ten steps of 32 examples."""
    config = default_config(model="clip_vit_emoji")
    config.model.image.update(
        image_size=8, patch_size=4, width=32, depth=2, num_heads=2, mlp_dim=64, patch_dropout=0.0
    )
    config.model.text.update(
        vocab_size=300, context_length=8, width=32, depth=2, num_heads=2, mlp_dim=64
    )
    config.model.embed_dim = 16
    config.data.train = "digits:train"
    config.data.templates = ("{}", "the digit {}")
    config.data.augment = "color_shift|affine"
    config.batch_size = 32
    config.total_steps = 10
    config.log_steps = 1
    config.checkpoint_percent = 0.0
    config.eval_batch_size = 64
    config.optim.lr = 3e-3
    config.optim.warmup_steps = 2
    config.evals.zeroshot = {"digits": {"data": "digits:test[:100]"}}
    return config


def tiny_classifier() -> ConfigDict:
    """ViT with 5,000 parameters on scikit-learn's digits, ten steps of 32 examples."""
    config = default_config(model="deit_ti16", objective="classification")
    config.model.update(
        image_size=8, patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32, num_classes=10
    )
    config.model.inputs.crop_fraction = 1.0
    config.data.train = "digits:train"
    config.batch_size = 32
    config.total_steps = 10
    config.log_steps = 1
    config.checkpoint_percent = 0.0
    config.eval_batch_size = 64
    config.optim.lr = 3e-3
    return config


def metrics_of(workdir: pathlib.Path, name: str = "loss") -> dict[int, float]:
    """Reads the values of a metric by step from `metrics.jsonl`."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def train_in_two_parts(config: ConfigDict, workdir: pathlib.Path, step: int) -> str:
    """Trains, is interrupted by SIGTERM after a step, and goes on; returns the message."""
    config.hooks.stop = {
        "name": "tests.training.components:SendSignal", "step": step, "signal": int(signal.SIGTERM),
    }  # fmt: skip
    with pytest.raises(Interrupted) as stopped:
        experiment.train(config, workdir)
    del config.hooks.stop
    experiment.train(config, workdir)
    return str(stopped.value)


def assert_trees_equal(left: Any, right: Any) -> None:
    """Compares two trees of arrays bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, left, right)


def fast_flags() -> str:
    """Flags of the tests that make compilation fast, for other processes.

    Those for eight simulated devices are left out. The scheduler that they need orders the
    collectives of several processes differently, and gloo aborts.
    """
    simulated = ("device_count", "concurrency_optimized_scheduler")
    flags = os.environ["XLA_FLAGS"].split()
    return " ".join(flag for flag in flags if not any(part in flag for part in simulated))


def run_command(
    command: str, *args: object, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m vit_jax.COMMAND` on one device.

    Args:
        command: module of the command, as "train".
        *args: arguments of the command.
        code: expected exit code.
        **environment: further environment variables.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"vit_jax.{command}", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": fast_flags(), **environment},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
