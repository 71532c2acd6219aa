"""Start of `jax.distributed` for runs of several processes, and agreement between them."""

import contextlib
import hashlib
import logging
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax import interruption, launchers
from vit_jax.errors import Interrupted, UserError

logger = logging.getLogger(__name__)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def start(timeout: int = 300) -> None:
    """Connects to the other processes of the run; does nothing in a run of one process.

    Processes are found by the first that applies of:
      - JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, as set by `launch/local.sh`
        and the Kubernetes manifest;
      - Slurm, with one task per process;
      - the metadata of TPU pods and GKE.

    Args:
        timeout: time to wait for the coordinator and the other processes, seconds.

    Raises:
        UserError: the coordinator was not reached, or processes run different software.
        Interrupted: the coordinator was not reached, and a signal has arrived meanwhile.
    """
    found = launchers.find()
    if found is None:
        return
    name, arguments = found
    # For collectives between CPU processes; other platforms ignore it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=timeout,
            # If a process dies, the others end within this time, even inside a collective.
            heartbeat_timeout_seconds=30,
        )
    except (RuntimeError, ValueError) as error:
        if interruption.requested():
            raise Interrupted(
                "stopped before the first step; the same command starts again"
            ) from None
        raise UserError(
            f"the processes of this run ({name}) did not connect within {timeout} s: "
            f"{str(error).splitlines()[0]}"
        ) from error
    interruption.connected()
    _check_same_software()
    if jax.process_index():
        logging.getLogger("vit_jax").setLevel(logging.ERROR)  # process 0 logs for all
    logger.info("%d processes (%s), %d devices.", jax.process_count(), name, jax.device_count())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends all processes of the run if the block fails in one of them.

    Raises:
        UserError: the block failed with it in this process, or failed in another process.
        OSError: the block failed with it in this process.
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
            raise UserError(f"processes {failed} failed; their output has the reason")
    if failure is not None:
        raise failure


def total(number: int) -> int:
    """Sums a number over all processes. Every process must call it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray(number, np.int32)).sum())


def from_first(number: int) -> int:
    """Returns the number of process 0. Every process must call it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def _gather(value: np.ndarray) -> np.ndarray:
    """Gathers a value from each process, after which any of them may end.

    A gather returns once one local device has the result. Other devices may still be connecting,
    and a process whose peer has ended would wait for its connections forever.
    """
    everyone = multihost_utils.process_allgather(value).reshape(-1)
    multihost_utils.sync_global_devices("gathered")
    return everyone


def _check_same_software() -> None:
    """Refuses different software: processes with different programs hang in a collective."""
    own = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    text = ", ".join(f"{name} {number}" for name, number in own.items())
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest()[:4], np.uint32)
    everyone = _gather(digest)
    if len(set(everyone.tolist())) > 1:
        others = [i for i, value in enumerate(everyone) if value != everyone[0]]
        print(f"process {jax.process_index()}: {text}", file=sys.stderr)
        raise UserError(
            f"processes {others} run other software than process 0; each has printed its versions: "
            "install the same versions everywhere"
        )
