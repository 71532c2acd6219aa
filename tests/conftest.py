"""Settings of all tests: eight simulated devices, one compilation cache, checked annotations."""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

# Set before JAX is imported. Simulated devices wait for one another in threads: on two busy cores,
# collectives in arbitrary order can occupy all threads and deadlock, and slow devices look dead.
# LLVM's optimisations change the speed of a program, not its results, and took most of the time of
# the tests.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false "
    "--xla_cpu_collective_timeout_seconds=300 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=300 "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# The older compiler of CPU kernels takes a third of the time. JAX 0.11 removed it.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # cuda for `pytest -m gpu`
# One compilation cache for all workers of a run and for their subprocesses, which inherit the
# variable. It is new in each run: programs of simulated devices from an earlier process can hang.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vit_jax_test_cache_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Before vit_jax is imported: types and shapes of all annotated functions are checked at run time.
import jaxtyping

import tests.typechecking  # noqa: F401 (found by the hook)

jaxtyping.install_import_hook("vit_jax", "tests.typechecking.check")

import jax
import pytest
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # recipes are `configs.NAME` in tests

from tests import helpers

# Programs are large trees of Python objects. Looking for garbage in them at the default rate took a
# tenth of the time of the tests.
gc.set_threshold(50_000, 10, 10)


@pytest.fixture
def unchecked_annotations() -> Iterator[None]:
    """Switches the check of annotations off, to test how wrong arguments are refused."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def libtpu() -> Iterator[None]:
    """Allows compilation for TPUs. libtpu ends the process at a flag that it does not know."""
    pytest.importorskip("libtpu")
    flags = os.environ["XLA_FLAGS"]
    jax.devices()  # has read the flags
    os.environ["XLA_FLAGS"] = flags.replace("--xla_cpu_use_fusion_emitters=false", "")
    yield
    os.environ["XLA_FLAGS"] = flags


@pytest.fixture
def tiny_config() -> ConfigDict:
    """Config of a tiny CLIP, see `helpers.tiny_clip`."""
    return helpers.tiny_clip()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, float]]:
    """Workdir and metrics of a complete run of `helpers.tiny_clip`. Read-only."""
    from vit_jax.experiment import train

    workdir = tmp_path_factory.mktemp("finished_run")
    return workdir, train(helpers.tiny_clip(), workdir)
