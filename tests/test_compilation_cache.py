"""Compiled programs that outlive their process."""

import json
import math
import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

# Sums over all devices, and prints how often a program came from the cache.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from vit_jax import compilation_cache
compilation_cache.use_default()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, PartitionSpec("data")))
total = float(jax.jit(lambda x: jnp.sum(jnp.sin(x)))(x))
print(json.dumps([len(hits), total]))
"""


def start(cache, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**inherited, "JAX_PLATFORMS": "cpu", "VIT_JAX_CACHE": str(cache), **environment},
        text=True,
        capture_output=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


def files(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def test_the_second_start_does_not_compile(tmp_path):
    hits, total = start(tmp_path)
    assert hits == 0
    assert files(tmp_path / "programs")
    again, same = start(tmp_path)
    assert again > 0
    assert same == total == pytest.approx(sum(math.sin(i) for i in range(8)))


def test_programs_for_several_cpu_devices_are_not_kept(tmp_path):
    """Their collectives were seen to hang after a start from the cache."""
    for _ in range(2):
        assert start(tmp_path, JAX_NUM_CPU_DEVICES="4")[0] == 0
    assert not files(tmp_path)


def test_the_users_choice_is_kept(tmp_path):
    own = tmp_path / "own"
    start(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own))
    assert files(own)
    assert not files(tmp_path / "programs")
    start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not files(tmp_path / "programs")
