"""Variants on this machine, one after the other, each in a process of its own."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

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
        code = train_one(variant, workdir)
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


def train_one(
    variant: Variant, workdir: str, should_stop: Callable[[], bool] = lambda: False
) -> int:
    """Trains a variant.

    Args:
        variant: variant of a sweep.
        workdir: folder of the sweep.
        should_stop: asked while it trains whether to stop it early.

    Returns:
        The exit code: 0 for one that is complete, `interruption.RESUMABLE` for one stopped early.

    Raises:
        Interrupted: SIGINT or SIGTERM, of this process or of the variant; its state is saved.
    """
    # Its metrics go to stderr, because the table of the sweep is the output of this command.
    with subprocess.Popen(train_command(variant, workdir), stdout=sys.stderr) as process:
        stopping = early = False
        try:
            while process.poll() is None:
                early = early or should_stop()
                if not stopping and (early or interruption.requested()):
                    process.send_signal(signal.SIGTERM)
                    stopping = True
                time.sleep(_POLL)
        except BaseException:
            process.terminate()
            raise
    code = process.returncode
    if interruption.requested() or (code == interruption.RESUMABLE and not early):
        raise _interrupted(workdir)
    return code


def _interrupted(workdir: str) -> Interrupted:
    return Interrupted(f"{workdir}: stopped and saved; the same command continues")
