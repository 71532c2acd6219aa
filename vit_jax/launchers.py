"""How the processes of a run find each other, from the environment that their launcher sets."""

import os
from typing import Any

from vit_jax.errors import UserError


def starts_several() -> bool:
    """Whether this process is one of several."""
    try:
        return find() is not None
    except UserError:  # refused by `parallel.processes.start`
        return False


def find() -> tuple[str, dict[str, Any]] | None:
    """Finds the launcher of a run of several processes.

    Returns:
        Its name and the arguments of `jax.distributed.initialize`; None for a single process.

    Raises:
        UserError: only some of the variables of JAX are set.
    """
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
    # A task of `srun` or `sbatch`; an interactive shell in an allocation has no step.
    if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in env:
        return "Slurm", {}
    if len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        return "TPU pod", {}
    return None
