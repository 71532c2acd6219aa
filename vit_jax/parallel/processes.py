"""Starts `jax.distributed` where a run has several processes, whoever started them."""

import contextlib
import hashlib
import logging
import os
import platform
import sys
from collections.abc import Iterator

import jax
import numpy as np

from vit_jax.errors import UserError

logger = logging.getLogger(__name__)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def start(timeout: int = 300) -> None:
    """Joins the other processes of the run; does nothing in a run of one process.

    Processes are found by, in this order:
      - JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, as `launch/local.sh` and the
        Kubernetes manifest set them;
      - Slurm, one task a process;
      - TPU pods and GKE, by their own metadata.

    Args:
        timeout: seconds to wait for the coordinator and the other processes.

    Raises:
        UserError: the coordinator was not reached, or processes run different software.
    """
    found = _find()
    if found is None:
        return
    name, arguments = found
    # Collectives between CPU processes; other platforms do not look at it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=timeout,
            # A process that dies ends the others within this time, also from within a collective.
            heartbeat_timeout_seconds=30,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run ({name}) did not find each other within {timeout} s: "
            f"{str(error).splitlines()[0]}"
        ) from error
    _check_same_software()
    if jax.process_index():
        logging.getLogger("vit_jax").setLevel(logging.ERROR)  # process 0 speaks for all
    logger.info("%d processes (%s), %d devices.", jax.process_count(), name, jax.device_count())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that ends all processes of the run if one of them cannot do its part.

    Raises:
        UserError: its own, or, where the block went well here, which other process has one.
    """
    failure: Exception | None = None
    try:
        yield
    except (UserError, OSError) as error:
        failure = error
    if jax.process_count() > 1:
        everyone = _gather(np.array([failure is not None]))
        if failure is None and everyone.any():
            failed = np.flatnonzero(everyone).tolist()
            raise UserError(f"processes {failed} could not start; they have printed why")
    if failure is not None:
        raise failure


def total(number: int) -> int:
    """Sum of a number over all processes, each of which must ask."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.asarray(number, np.int32)).sum())


def from_first(number: int) -> int:
    """Process 0's number, on all processes, each of which must ask."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def _gather(value: np.ndarray) -> np.ndarray:
    """An array's values on all processes, after which any of them may end.

    A gather is done once one local device has it. The others may still be connecting, and a process
    whose peer has left waits for its connections without end.
    """
    from jax.experimental import multihost_utils

    everyone = multihost_utils.process_allgather(value).reshape(-1)
    multihost_utils.sync_global_devices("gathered")
    return everyone


def _find() -> tuple[str, dict] | None:
    """Who started the processes and what to tell JAX, or None for a single process."""
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        keys = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        if missing := [key for key in keys if not env.get(key, "").isdigit()]:
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is set, but {' and '.join(missing)} "
                "is not a number: set all three or none"
            )
        return "environment", {
            "coordinator_address": env["JAX_COORDINATOR_ADDRESS"],
            "num_processes": int(env["JAX_NUM_PROCESSES"]),
            "process_id": int(env["JAX_PROCESS_ID"]),
        }
    # A task within `srun` or `sbatch`; an interactive shell of an allocation has no step.
    if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in env:
        return "Slurm", {}
    if len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        return "TPU pod", {}
    return None


def _check_same_software() -> None:
    """Processes that trace different programs would hang in the first collective."""
    from importlib.metadata import version

    own = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    text = ", ".join(f"{name} {number}" for name, number in own.items())
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest()[:4], np.uint32)
    everyone = _gather(digest)
    if len(set(everyone.tolist())) > 1:
        others = [i for i, value in enumerate(everyone) if value != everyone[0]]
        print(f"process {jax.process_index()}: {text}", file=sys.stderr)
        raise UserError(
            f"processes {others} run other software than process 0; each has printed its own: "
            "install the same versions everywhere"
        )
