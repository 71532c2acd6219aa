"""Checkpoints of a run with Orbax: asynchronous, atomic, read back, each part readable alone."""

import dataclasses
import functools
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vit_jax.checkpoint import integrity
from vit_jax.errors import UserError, check_name
from vit_jax.training.step import TrainState

logger = logging.getLogger(__name__)

DIRECTORY = "checkpoints"  # within a workdir
# Microbatches of a checkpoint. Evaluation reads the parameters without the optimizer.
_PARTS = ("params", "opt_state", "ema")
_RECORDS = ("data", "config")
_SET_ASIDE = ".damaged"  # suffix of a checkpoint that cannot be read
# What the operating system says, within the messages of whichever library wrote the file.
_FILE_SYSTEM = (
    "No space left on device",
    "Disk quota exceeded",
    "Permission denied",
    "Read-only file system",
    "Input/output error",
)


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints stay; one is deleted when a newer one was read back.

    Attributes:
        last: newest ones.
        every_steps: and those of steps that are multiples of this; 0 for none.
        best: and the one with the highest of this metric of evaluations; "" for none.
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
    """The checkpoints of a workdir, by step."""

    def __init__(self, workdir: str | pathlib.Path, *, retention: Retention | None = None):
        """Opens the folder.

        Args:
            workdir: of the run; `checkpoints/` is made within it.
            retention: what to keep; None to read alone.
        """
        self.directory = pathlib.Path(workdir).resolve() / DIRECTORY
        self._best = retention.best if retention else ""
        self._saving = 0
        self._thread = ThreadPoolExecutor(1, "save", initializer=_give_way)
        with self._told_clearly():
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
        best_fn = (lambda figures: figures[self._best]) if self._best else None
        if best_fn:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=best_fn, n=1, keep_checkpoints_without_metrics=False
                )
            )
        return ocp.CheckpointManagerOptions(
            create=True,
            cleanup_tmp_directories=True,  # what a kill within a save has left
            enable_async_checkpointing=True,
            best_fn=best_fn,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            # Runs before the folder gets its final name, by which a checkpoint counts as one,
            # and so before any older one is deleted.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )

    def _seal(self) -> None:
        (written,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        integrity.seal(written)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        data: dict[str, Any],
        config: dict[str, Any],
        figures: Mapping[str, float],
        urgent: bool = False,
    ) -> None:
        """Starts saving; returns once the arrays are copied off the devices.

        Args:
            step: steps done.
            state: after that step.
            data: position in the data.
            config: of the run, kept beside the state.
            metrics: of an evaluation of this very step; empty where there was none.
            urgent: whether the run waits for it, instead of it giving way to the run.

        Raises:
            UserError: this save, or the one before, which is finished first, found no room or
                may not write.
        """
        if step in self._manager.all_steps():
            return
        parts = {part: getattr(state, part) for part in _PARTS}
        items = {k: ocp.args.StandardSave(v) for k, v in parts.items() if v is not None}
        args = ocp.args.Composite(
            **items, data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config)
        )
        with self._told_clearly():
            self._manager.wait_until_finished()
            self._saving = step
            save = functools.partial(
                self._manager.save, step, args=args, metrics=self._judged(figures)
            )
            # The threads that write have the priority of the one that starts them.
            save() if urgent else self._thread.submit(save).result()

    def is_best(self, figures: Mapping[str, float]) -> bool:
        """Whether an evaluation beats those of all checkpoints, by the metric to keep.

        Raises:
            UserError: there is no such metric.
        """
        if not self._best or not figures:
            return False
        check_name(self._best, figures, "config.keep_best,")
        kept = (self._manager.metrics(step) for step in self._manager.all_steps())
        return all(figures[self._best] > found[self._best] for found in kept if found)

    def _judged(self, figures: Mapping[str, float]) -> dict[str, float] | None:
        return {self._best: figures[self._best]} if self._best in figures else None

    @property
    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._manager.is_saving_in_progress()

    def check(self) -> None:
        """Raises the error of a save that failed since, if one did."""
        with self._told_clearly():
            self._manager.check_for_errors()

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads the whole state and the data position.

        Args:
            step: a saved one.
            abstract: `ShapeDtypeStruct`s with shardings; the arrays land accordingly.
        """
        self.wait()
        parts = {part: getattr(abstract, part) for part in _PARTS}
        items = {k: ocp.args.StandardRestore(v) for k, v in parts.items() if v is not None}
        found = self._manager.restore(
            step, args=ocp.args.Composite(**items, data=ocp.args.JsonRestore())
        )
        values: dict[str, Any] = {part: found[part] for part in items}
        values.setdefault("ema", None)
        counter = jax.device_put(np.asarray(step, abstract.step.dtype), abstract.step.sharding)
        return TrainState(step=counter, **values), found["data"]

    def restore_params(
        self, abstract: Any, *, ema: bool, step: int | None = None
    ) -> tuple[Any, int]:
        """Reads the parameters alone; returns them and their step. See `read_params`."""
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
        with self._told_clearly():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._thread.shutdown()

    @contextmanager
    def _told_clearly(self) -> Iterator[None]:
        """Full disks, lost permissions and bad disks, from whatever depth, as the user's error."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                raise
            newest = max(step_numbers(self.directory), default=None)
            kept = f"that of step {newest} is whole" if newest else "there is none before it"
            raise UserError(
                f"the checkpoint of step {self._saving} was not saved in {self.directory}: "
                f"{reason}; {kept}, and once that is mended the same command goes on from it"
            ) from error


def _give_way() -> None:
    """Makes this thread, and those it starts, run when no other wants to: steps go before saves."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _reason(error: Exception) -> str | None:
    """What to tell of an error of the file system; None for any other error."""
    if isinstance(error, integrity.Damaged):
        return f"it could not be read back ({error})"
    text = str(error)
    return next((reason for reason in _FILE_SYSTEM if reason in text), None)


def step_numbers(directory: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints in a folder."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()]


def set_damaged_aside(workdir: pathlib.Path) -> None:
    """Makes the newest checkpoint one that can be restored.

    Newer ones that are damaged are renamed to `<step>.damaged`: their steps will be saved again.

    Raises:
        UserError: there were checkpoints, and all are damaged.
    """
    directory = workdir / DIRECTORY
    for step in sorted(step_numbers(directory), reverse=True):
        try:
            integrity.check(directory / str(step))
        except integrity.Damaged as damage:
            logger.warning("The checkpoint of step %d is damaged (%s): set aside.", step, damage)
            aside = directory / f"{step}{_SET_ASIDE}"
            shutil.rmtree(aside, ignore_errors=True)
            (directory / str(step)).rename(aside)
        else:
            return
    if any(directory.glob(f"*{_SET_ASIDE}")):
        raise UserError(
            f"every checkpoint in {directory} is damaged; to start from the beginning, delete it"
        )


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Whether a run has saved anything yet."""
    return bool(step_numbers(pathlib.Path(workdir) / DIRECTORY))


def read_params(
    workdir: str | pathlib.Path, abstract: Any, *, ema: bool, step: int | None = None
) -> tuple[Any, int]:
    """Parameters of a run's checkpoint, without its optimizer, and the step they are from.

    Args:
        workdir: of the run.
        abstract: tree of `ShapeDtypeStruct`s with shardings.
        ema: whether to read their moving average instead.
        step: which checkpoint; None for the newest that is whole.
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
