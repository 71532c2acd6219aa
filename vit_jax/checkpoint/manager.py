"""Checkpoints with Orbax: asynchronous, atomic, verified, with separately readable parts."""

import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vit_jax.checkpoint import integrity
from vit_jax.errors import UserError, check_name
from vit_jax.paths import StrPath, absolute, as_path, is_url
from vit_jax.workdir import workdir_path

logger = logging.getLogger(__name__)

State = TypeVar("State")  # see training.state.TrainState

DIRECTORY = "checkpoints"  # within a workdir
# Items of a checkpoint. Evaluation reads the parameters without the optimizer.
_PARTS = ("params", "opt_state", "ema", "anchor")
_RECORDS = ("data", "config")
_SET_ASIDE = ".damaged"  # suffix of a checkpoint that cannot be read
# Errors of the operating system, as they appear in the messages of other libraries.
_FILE_SYSTEM = (
    "No space left on device",
    "Disk quota exceeded",
    "Permission denied",
    "Read-only file system",
    "Input/output error",
)
_MIN_SLICE = 1 << 20  # bytes


def _write_small_arrays_whole() -> None:
    """Sets the size from which replicas of an array write a slice each.

    Orbax slices the smallest arrays too, and each slice is a program to compile at the first save.
    """
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_MIN_SLICE)
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)  # replacing a handler is warned of
    try:
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    finally:
        absl.logging.set_verbosity(verbosity)


_write_small_arrays_whole()


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept. One is deleted only after a newer one has been verified.

    Attributes:
        last: number of newest checkpoints.
        every_steps: steps whose multiples are kept as well; 0 for none.
        best: evaluation metric whose highest checkpoint is kept as well; "" for none.
    """

    last: int
    every_steps: int = 0
    best: str = ""

    def __post_init__(self) -> None:
        if self.last < 1:
            raise UserError(f"config.keep_checkpoints={self.last}: expected 1 or more")
        if self.every_steps < 0:
            raise UserError(f"config.keep_every_steps={self.every_steps}: expected 0 or more")


class Checkpoints:
    """The checkpoints of a workdir by step."""

    def __init__(self, workdir: StrPath, *, retention: Retention | None = None):
        """Opens the folder.

        Args:
            workdir: folder of the run, local or gs://; `checkpoints/` is created in it.
            retention: checkpoints to keep; None opens them for reading only.
        """
        self.directory = absolute(workdir_path(workdir)) / DIRECTORY
        self._best = retention.best if retention else ""
        self._saving = 0
        self._thread = ThreadPoolExecutor(1, "save", initializer=_lower_priority)
        with self._readable_errors():
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=self._options(retention),
                item_names=(*_PARTS, *_RECORDS),
                item_handlers={
                    **{part: ocp.StandardCheckpointHandler() for part in _PARTS},
                    **{record: ocp.JsonCheckpointHandler() for record in _RECORDS},
                },
            )

    def _options(self, retention: Retention | None) -> ocp.CheckpointManagerOptions:
        if retention is None:
            return ocp.CheckpointManagerOptions(create=False)
        policies: list[Any] = [checkpoint_managers.LatestN(retention.last)]
        if retention.every_steps:
            policies.append(checkpoint_managers.EveryNSteps(retention.every_steps))
        best_fn = (lambda metrics: metrics[self._best]) if self._best else None
        if best_fn:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=best_fn, n=1, keep_checkpoints_without_metrics=False
                )
            )
        return ocp.CheckpointManagerOptions(
            create=True,
            cleanup_tmp_directories=True,  # left by a kill during a save
            enable_async_checkpointing=True,
            best_fn=best_fn,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            # Runs before the folder gets its final name (in a bucket: a last object), which makes
            # it a checkpoint, and so before any older one is deleted.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )

    def _seal(self) -> None:
        written = self.directory / str(self._saving)
        if not is_url(written):
            (written,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        integrity.seal(written)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        *,
        data: dict[str, Any],
        config: dict[str, Any],
        metrics: Mapping[str, float],
        urgent: bool = False,
    ) -> None:
        """Starts saving; returns once the arrays are copied off the devices.

        Args:
            step: steps done.
            state: state after that step: see `training.state.TrainState`.
            data: position in the data.
            config: config of the run, saved beside the state.
            metrics: evaluation metrics of this very step; empty where there are none.
            urgent: whether the run waits for the save; otherwise the save has a low priority.

        Raises:
            UserError: this save, or the previous one, which is finished first, found no space or
                no permission.
        """
        if step in self._manager.all_steps():
            return
        parts = {part: getattr(state, part) for part in _PARTS}
        items = {k: ocp.args.StandardSave(v) for k, v in parts.items() if v is not None}
        args = ocp.args.Composite(
            **items, data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config)
        )
        with self._readable_errors():
            self._manager.wait_until_finished()
            self._saving = step
            save = functools.partial(
                self._manager.save, step, args=args, metrics=self._best_metric(metrics)
            )
            # Writing threads inherit the priority of the thread that starts them.
            save() if urgent else self._thread.submit(save).result()

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation beats those of all checkpoints in the metric `Retention.best`.

        Raises:
            UserError: the evaluation has no such metric.
        """
        if not self._best or not metrics:
            return False
        check_name(self._best, metrics, "config.keep_best,")
        kept = (self._manager.metrics(step) for step in self._manager.all_steps())
        return all(metrics[self._best] > found[self._best] for found in kept if found)

    def _best_metric(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
        return {self._best: metrics[self._best]} if self._best in metrics else None

    @property
    def saving(self) -> bool:
        """Whether a save is in progress."""
        return self._manager.is_saving_in_progress()

    def check(self) -> None:
        """Raises the error of a save that has failed in the background."""
        with self._readable_errors():
            self._manager.check_for_errors()

    def restore(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
        """Reads the whole state and the position in the data.

        Args:
            step: step of a checkpoint.
            abstract: state of `ShapeDtypeStruct`s with the shardings of the result.
        """
        self.wait()
        old: Any = abstract
        parts = {part: getattr(old, part) for part in _PARTS}
        items = {k: ocp.args.StandardRestore(v) for k, v in parts.items() if v is not None}
        found = self._manager.restore(
            step, args=ocp.args.Composite(**items, data=ocp.args.JsonRestore())
        )
        values: dict[str, Any] = {part: found[part] for part in items}
        counter = jax.device_put(np.asarray(step, old.step.dtype), old.step.sharding)
        return dataclasses.replace(old, step=counter, **values), found["data"]

    def restore_params(
        self, abstract: Any, *, ema: bool, step: int | None = None
    ) -> tuple[Any, int]:
        """Reads the parameters and returns them with their step, see `read_params`."""
        part = "ema" if ema else "params"
        step = self._choose(step, part)
        args = ocp.args.Composite(**{part: ocp.args.StandardRestore(abstract)})
        return self._manager.restore(step, args=args)[part], step

    def _choose(self, step: int | None, part: str) -> int:
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}")
        if step is not None and step not in steps:
            raise UserError(
                f"no checkpoint of step {step} in {self.directory}; found {sorted(steps)}"
            )
        for candidate in steps if step is None else [step]:
            try:
                integrity.check(self.directory / str(candidate), f"{part}/")
            except integrity.Damaged as damage:
                logger.warning("The checkpoint of step %d is damaged: %s.", candidate, damage)
            else:
                return candidate
        raise UserError(f"no undamaged checkpoint in {self.directory}")

    def wait(self) -> None:
        """Waits until everything is on disk."""
        with self._readable_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for running saves and frees the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._thread.shutdown()

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Turns errors of the file system, at any depth, into a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                raise
            newest = max(step_numbers(self.directory), default=None)
            kept = f"the one of step {newest} is intact" if newest else "there is no earlier one"
            raise UserError(
                f"the checkpoint of step {self._saving} was not saved in {self.directory}: "
                f"{reason}; {kept}. Once this is fixed, the same command continues from it"
            ) from error


def _lower_priority() -> None:
    """Gives this thread, and those that it starts, the lowest priority: steps go before saves."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _reason(error: Exception) -> str | None:
    """The reason of a file system error, for a message; None for any other error."""
    if isinstance(error, integrity.Damaged):
        return f"verification failed ({error})"
    text = str(error)
    return next((reason for reason in _FILE_SYSTEM if reason in text), None)


def step_numbers(directory: StrPath) -> list[int]:
    """Steps of the complete checkpoints in a folder, in any order."""
    folder = as_path(directory)
    if not folder.is_dir():
        return []
    numbered = [path for path in folder.iterdir() if path.name.isdigit()]
    return [int(path.name) for path in numbered if ocp.utils.is_checkpoint_finalized(path)]


def set_damaged_aside(workdir: StrPath) -> None:
    """Renames damaged checkpoints until the newest one can be restored.

    They become `<step>.damaged`; their steps will be saved again.

    Args:
        workdir: folder of the run.

    Raises:
        UserError: there were checkpoints, and all are damaged.
    """
    directory = workdir_path(workdir) / DIRECTORY
    for step in sorted(step_numbers(directory), reverse=True):
        try:
            integrity.check(directory / str(step))
        except integrity.Damaged as damage:
            logger.warning("The checkpoint of step %d is damaged (%s): set aside.", step, damage)
            aside = directory / f"{step}{_SET_ASIDE}"
            aside.rmtree(missing_ok=True)
            (directory / str(step)).rename(aside)
        else:
            return
    if any(directory.glob(f"*{_SET_ASIDE}")):
        raise UserError(
            f"every checkpoint in {directory} is damaged; to start from the beginning, delete it"
        )


def has_checkpoint(workdir: StrPath) -> bool:
    """Whether a workdir has a complete checkpoint."""
    return bool(step_numbers(workdir_path(workdir) / DIRECTORY))


def read_params(
    workdir: StrPath, abstract: Any, *, ema: bool, step: int | None = None
) -> tuple[Any, int]:
    """Reads the parameters of a checkpoint, without the optimizer state.

    Args:
        workdir: folder of the run.
        abstract: tree of `ShapeDtypeStruct`s with shardings.
        ema: whether to read the exponential moving average instead.
        step: step of the checkpoint; None for the newest that is intact.

    Returns:
        The parameters and the step of the checkpoint.

    Raises:
        UserError: no such checkpoint, or a damaged one.
    """
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore_params(abstract, ema=ema, step=step)
    finally:
        checkpoints.close()


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """Gives every `ShapeDtypeStruct` of a tree its sharding."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
