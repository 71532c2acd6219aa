"""Variants on this machine, one after the other, each in a process of its own."""

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence

from vit_jax import interruption
from vit_jax.errors import Interrupted
from vit_jax.sweeping.variants import Variant

logger = logging.getLogger(__name__)

_POLL = 0.2  # seconds


def train_all(variants: Sequence[Variant], workdir: str) -> dict[str, int]:
    """Trains variants. One that fails does not stop the others.

    Args:
        variants: variants that are not finished.
        workdir: folder of the sweep.

    Returns:
        Exit code of each variant that has failed.

    Raises:
        Interrupted: SIGINT or SIGTERM; the running variant has saved its state.
    """
    failed = {}
    interruption.working()  # the running variant, not this process, has a state to save
    for number, variant in enumerate(variants, 1):
        if interruption.requested():
            raise _interrupted(workdir)
        logger.info("%d of %d: %s", number, len(variants), variant.name)
        code = _train(variant, workdir)
        if code == interruption.RESUMABLE:
            raise _interrupted(workdir)
        if code:
            failed[variant.name] = code
    return failed


def train_command(variant: Variant, workdir: str) -> list[str]:
    """Command line that trains a variant.

    Args:
        variant: variant of a sweep.
        workdir: folder of the sweep.
    """
    return [sys.executable, "-m", "vit_jax.train", *variant.train_arguments(workdir)]


def _train(variant: Variant, workdir: str) -> int:
    """Trains a variant and passes a signal on to it. Returns the exit code."""
    # Its metrics go to stderr, because the table of the sweep is the output of this command.
    process = subprocess.Popen(train_command(variant, workdir), stdout=sys.stderr)
    told = False
    while True:
        try:
            return process.wait(_POLL)
        except subprocess.TimeoutExpired:
            if interruption.requested() and not told:
                process.send_signal(signal.SIGTERM)
                told = True


def _interrupted(workdir: str) -> Interrupted:
    return Interrupted(f"{workdir}: stopped and saved; the same command continues")
