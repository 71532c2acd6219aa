"""Variants as a Slurm array, one task of the array per variant."""

import pathlib
import subprocess
from collections.abc import Sequence

from vit_jax.errors import UserError

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "slurm.sbatch"


def submit_command(
    indices: Sequence[int], arguments: Sequence[str], options: Sequence[str], script: pathlib.Path
) -> list[str]:
    """Command line that submits variants.

    Args:
        indices: positions of the variants in the sweep.
        arguments: arguments of `vit_jax.sweep` that choose the sweep.
        options: further options of `sbatch`, as "--gpus-per-node=8".
        script: `launch/slurm.sbatch`.

    Raises:
        UserError: no such script.
    """
    if not script.is_file():
        raise UserError(f"no script {script}: give the path of launch/slurm.sbatch with --template")
    array = ",".join(map(str, indices))
    export = "--export=ALL,VIT_JAX_SWEEP=1"
    return ["sbatch", f"--array={array}", export, *options, str(script), *arguments]


def submit(command: Sequence[str]) -> None:
    """Submits the array; `sbatch` prints its number. With its option --wait, waits for the end.

    Raises:
        UserError: there is no Slurm, or `sbatch` refused its options.
    """
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise UserError("no sbatch on this machine: submit from a login node of Slurm") from None
    except subprocess.CalledProcessError as error:
        if "--wait" not in command:  # with it, the code is that of the tasks
            raise UserError(f"sbatch ended with exit code {error.returncode}") from None
