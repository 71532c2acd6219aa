"""Shared by all tests: eight simulated devices, one compilation cache, a tiny recipe."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

# Before JAX is imported. Simulated devices wait for one another in threads: on two busy cores,
# collectives that run in any order can take all threads and wait for ever, and slow neighbours
# look like dead ones.
# Most of the tests' time was LLVM's: its optimisations change how fast a program runs, not what it
# computes. Commands are tested without these flags, optimised as a user's are.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false "
    "--xla_cpu_collective_timeout_seconds=300 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=300 "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# One compilation cache for all workers of a run and its subprocesses, which inherit the variable. A
# new one each run: a program of simulated devices that is loaded from disk may wait for ever.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vit_jax_test_cache_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import pytest
from ml_collections import ConfigDict

from vit_jax.config import default_config

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # so that tests import recipes as `configs.clip_emoji`


def tiny() -> ConfigDict:
    """CLIP of 30,000 parameters on scikit-learn's digits, ten steps of 32."""
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


@pytest.fixture
def tiny_config() -> ConfigDict:
    """A fresh copy for each test."""
    return tiny()
