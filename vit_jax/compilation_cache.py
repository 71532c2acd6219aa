"""Time of compilation: programs in the user's cache folder, and options of programs that run once.

A run that starts again does not compile again.
"""

import hashlib
import logging
import os
import platform
from typing import Any

import jax

from vit_jax.data.cache import cache_dir
from vit_jax.errors import UserError

logger = logging.getLogger(__name__)

_MIN_COMPILE_SECONDS = 0.3


def use_default() -> None:
    """Uses JAX's persistent compilation cache, unless the user has set or disabled it.

    The user's means: JAX_COMPILATION_CACHE_DIR, and JAX_ENABLE_COMPILATION_CACHE=false. Programs
    for several CPU devices are not kept: their collectives were seen to hang when the program came
    from the cache of an earlier process.

    Call it after the processes of a run are connected.
    """
    config: Any = jax.config  # its flags are not known to type checkers
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        return
    try:
        folder = cache_dir() / "programs" / _machine()
    except UserError as error:
        logger.warning("Compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)


def options_to_run_once() -> dict[str, int]:
    """Returns `compiler_options` of `jax.jit` for a program that runs once, as initialisation does.

    On CPUs most of the time of compilation is LLVM's optimisation. At its first level the initial
    parameters are the same bit for bit and are there twice as fast. A level in XLA_FLAGS is kept.
    """
    option = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or option in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {option: 1}


def _machine() -> str:
    """Name of the kind of machine. Programs for CPUs use the instructions of that very CPU."""
    try:
        with open("/proc/cpuinfo") as lines:
            features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    described = f"{platform.machine()} {features} {jax.__version__}"
    return hashlib.sha256(described.encode()).hexdigest()[:16]
