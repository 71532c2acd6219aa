"""What a run does about a loss or gradient that is not finite."""

import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit_jax.atomic_files import write_text
from vit_jax.errors import UserError

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip", "rollback")


class Rollback(Exception):
    """The run is to go on from its newest checkpoint, without one batch."""


class NonFinite:
    """Looks at every step's `finite`, and keeps the numbers of the batches that failed.

    The flag of a step is read when the next one has been sent off, so that the devices never wait
    for this; `settle` reads it at once, before a state is kept or shown.

    Attributes:
        batches: numbers of the batches that failed, the run's first being 1. Kept in checkpoints,
            so that a resumed run counts on.
    """

    def __init__(self, policy: str, limit: int, dump: Callable[[int, int, dict[str, Any]], None]):
        """Starts without failures.

        Args:
            policy: stop, skip or rollback, see `config.non_finite`.
            limit: failures in a row that skip and rollback bear.
            dump: (step, batch, metrics) -> writes what is known of a failure.
        """
        self.batches: set[int] = set()
        self._policy, self._limit, self._dump = policy, limit, dump
        self._pending: tuple[int, int, dict[str, Any]] | None = None
        self._failed_step, self._in_a_row = 0, 0

    def saw(self, step: int, batch: int, metrics: dict[str, Any]) -> None:
        """A step was sent off; looks at the one before.

        Raises:
            Rollback: that one failed.
            UserError: it failed, and the run is to stop.
        """
        before, self._pending = self._pending, (step, batch, metrics)
        self._look(before)

    def settle(self) -> None:
        """Looks at the newest step; raises as `saw`."""
        before, self._pending = self._pending, None
        self._look(before)

    def _look(self, pending: tuple[int, int, dict[str, Any]] | None) -> None:
        if pending is None or bool(pending[2]["finite"]):
            return
        step, batch, metrics = pending
        self.batches.add(batch)
        # Skipped updates fail at steps in a row, rollbacks at the same step again and again.
        consecutive = step - self._failed_step in (0, 1)
        self._in_a_row = self._in_a_row + 1 if consecutive else 1
        self._failed_step = step
        self._dump(step, batch, metrics)
        problem = f"loss {float(metrics['loss'])}, gradient norm {float(metrics['grad_norm'])}"
        if self._policy == "stop" or self._in_a_row > self._limit:
            again = f" for the {self._in_a_row}th time in a row" if self._in_a_row > 1 else ""
            raise UserError(
                f"step {step} is not finite{again} ({problem}); the workdir has its examples and "
                f"the gradient norm of every layer in {dump_name(step)}. config.non_finite=skip or "
                "rollback would go on without its batch"
            )
        logger.warning("Step %d is not finite (%s): %s.", step, problem, self._policy)
        if self._policy == "rollback":
            self._pending = None  # of a step that will be done anew
            raise Rollback


def dump_name(step: int) -> str:
    """File of a failure, within the workdir."""
    return f"non_finite_step_{step}.json"


def write_dump(
    workdir: pathlib.Path,
    step: int,
    metrics: dict[str, Any],
    *,
    layers: list[str],
    positions: tuple[int, int],
    rows: list[int],
) -> None:
    """Writes what is known of a step that failed, for whoever looks for the cause.

    Args:
        workdir: of the run.
        step: that failed.
        metrics: of the step, with `per_layer_grad_norms`.
        layers: their names.
        positions: first and last (exclusive) example in the run's order, counted from 0.
        rows: of the source, or of its groups under `config.data.group_by`, one an example.
    """
    values = jax.device_get(metrics)
    norms = np.asarray(values.pop("per_layer_grad_norms"))
    found = {
        "step": step,
        # JSON has no NaN: numbers that are none become text.
        **{name: _plain(value) for name, value in values.items()},
        "examples": list(positions),
        "rows": rows,
        "per_layer_grad_norms": {k: _plain(v) for k, v in zip(layers, norms, strict=True)},
    }
    write_text(workdir / dump_name(step), json.dumps(found, indent=1) + "\n")


def _plain(value: Any) -> float | str:
    number = float(value)
    return number if np.isfinite(number) else str(number)
