"""Policy for losses and gradients that are NaN or infinite."""

import json
import logging
from typing import Any

import jax
import numpy as np

from vit_jax.atomic_files import write_text
from vit_jax.errors import UserError, check_name
from vit_jax.training.hooks.base import Hook
from vit_jax.training.run import Run
from vit_jax.training.step import per_layer_names

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip", "rollback")


class Rollback(Exception):
    """The run continues from its newest checkpoint, without one batch."""


class NonFinite(Hook):
    """Reads the flag `finite` of every step, and writes a dump of each step that failed.

    The flag of a step is read after the next one was dispatched, so that the devices never wait
    for it; `settle` reads it at once, before a state is saved or shown. `Run.bad_batches` collects
    the numbers of the batches that failed. It is saved in checkpoints.
    """

    def __init__(self, policy: str, limit: int):
        """Starts without failures.

        Args:
            policy: "stop", "skip" or "rollback", see `config.non_finite`.
            limit: consecutive failures that "skip" and "rollback" tolerate.

        Raises:
            UserError: unknown policy.
        """
        check_name(policy, POLICIES, "config.non_finite,")
        self._policy, self._limit = policy, limit
        self._pending: tuple[int, int, dict[str, Any]] | None = None
        self._failed_step, self._consecutive = 0, 0

    def on_start(self, run: Run) -> None:
        """Keeps the run, whose batches and workdir a failure needs."""
        self._run, self._pending = run, None

    def after_step(self, run: Run, step: int, metrics: dict[str, jax.Array]) -> None:
        """Checks the previous step.

        Raises:
            Rollback: that step failed.
            UserError: that step failed, and the run stops.
        """
        previous, self._pending = self._pending, (step, run.batch_number, metrics)
        self._check(previous)

    def settle(self) -> None:
        """Checks the newest step; raises as `after_step`."""
        previous, self._pending = self._pending, None
        self._check(previous)

    def _check(self, pending: tuple[int, int, dict[str, Any]] | None) -> None:
        if pending is None or bool(pending[2]["finite"]):
            return
        step, batch_number, metrics = pending
        self._run.bad_batches.add(batch_number)
        # Skipped updates fail at consecutive steps, rollbacks at the same step again and again.
        consecutive = step - self._failed_step in (0, 1)
        self._consecutive = self._consecutive + 1 if consecutive else 1
        self._failed_step = step
        write_dump(self._run, step, batch_number, metrics)
        problem = f"loss {float(metrics['loss'])}, gradient norm {float(metrics['grad_norm'])}"
        if self._policy == "stop" or self._consecutive > self._limit:
            again = f" (failure {self._consecutive} in a row)" if self._consecutive > 1 else ""
            raise UserError(
                f"step {step} is not finite{again} ({problem}); {dump_name(step)} in the workdir "
                "lists its examples and the gradient norm of every layer. With "
                "config.non_finite=skip or rollback the run continues without this batch"
            )
        logger.warning("Step %d is not finite (%s): %s.", step, problem, self._policy)
        if self._policy == "rollback":
            self._pending = None  # this step will be repeated
            raise Rollback


def dump_name(step: int) -> str:
    """File name of the dump of a failed step."""
    return f"non_finite_step_{step}.json"


def write_dump(run: Run, step: int, batch_number: int, metrics: dict[str, Any]) -> None:
    """Writes the examples, metrics and gradient norms of a failed step, for debugging.

    Args:
        run: the run.
        step: step that failed.
        batch_number: number of its batch.
        metrics: metrics of the step, with `per_layer_grad_norms`.
    """
    if jax.process_index():
        return
    batch_size, loader = run.config.batch_size, run.experiment.loader
    first, last = (batch_number - 1) * batch_size, batch_number * batch_size
    values = jax.device_get(metrics)
    norms = np.asarray(values.pop("per_layer_grad_norms"))
    names = per_layer_names(run.experiment.model)
    dump = {
        "step": step,
        **{name: _json_number(value) for name, value in values.items()},
        "examples": [first, last],
        "rows": loader.rows(first, last),
        "per_layer_grad_norms": {k: _json_number(v) for k, v in zip(names, norms, strict=True)},
    }
    write_text(run.workdir / dump_name(step), json.dumps(dump, indent=1) + "\n")


def _json_number(value: Any) -> float | str:
    """A number for JSON, which has no NaN and no infinity: they become text."""
    number = float(value)
    return number if np.isfinite(number) else str(number)
