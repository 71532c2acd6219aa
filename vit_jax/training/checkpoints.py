"""Checkpoints of a run with Orbax: asynchronous, atomic, each part readable on its own."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.errors import UserError
from vit_jax.training.step import TrainState

DIRECTORY = "checkpoints"  # within a workdir
# Parts of a checkpoint. Evaluation reads the parameters without the optimizer.
_PARTS = ("params", "opt_state", "ema")


class Checkpoints:
    """The checkpoints of a workdir, by step."""

    def __init__(self, workdir: str | pathlib.Path, *, keep: int | None = None):
        """Opens the folder.

        Args:
            workdir: of the run; `checkpoints/` is made within it at the first save.
            keep: newest checkpoints kept; None keeps all.
        """
        self.directory = pathlib.Path(workdir).resolve() / DIRECTORY
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=keep is not None, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=options,
            item_names=(*_PARTS, "data"),
            item_handlers={
                **{part: ocp.StandardCheckpointHandler() for part in _PARTS},
                "data": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Starts saving; returns once the arrays are copied off the devices."""
        if step in self._manager.all_steps():
            return
        parts = {part: getattr(state, part) for part in _PARTS}
        items = {k: ocp.args.StandardSave(v) for k, v in parts.items() if v is not None}
        self._manager.save(step, args=ocp.args.Composite(**items, data=ocp.args.JsonSave(data)))

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads the whole state and the data position.

        Args:
            step: a saved one.
            abstract: `ShapeDtypeStruct`s with shardings; the arrays land accordingly.
        """
        parts = {part: getattr(abstract, part) for part in _PARTS}
        items = {k: ocp.args.StandardRestore(v) for k, v in parts.items() if v is not None}
        found = self._manager.restore(
            step, args=ocp.args.Composite(**items, data=ocp.args.JsonRestore())
        )
        values: dict[str, Any] = {part: found[part] for part in items}
        values.setdefault("ema", None)
        counter = jax.device_put(np.asarray(step, abstract.step.dtype), abstract.step.sharding)
        return TrainState(step=counter, **values), found["data"]

    def restore_params(self, abstract: Any, *, ema: bool, step: int | None = None) -> Any:
        """Reads the parameters alone.

        Args:
            abstract: tree of `ShapeDtypeStruct`s with shardings.
            ema: whether to read their moving average instead.
            step: which checkpoint; None for the newest.
        """
        step = self._choose(step)
        part = "ema" if ema else "params"
        args = ocp.args.Composite(**{part: ocp.args.StandardRestore(abstract)})
        return self._manager.restore(step, args=args)[part]

    def _choose(self, step: int | None) -> int:
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}")
        if step is None:
            return max(steps)
        if step not in steps:
            raise UserError(
                f"no checkpoint of step {step} in {self.directory}; found {sorted(steps)}"
            )
        return step

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Whether a run has saved anything yet."""
    return any(p.name.isdecimal() for p in (pathlib.Path(workdir) / DIRECTORY).glob("*"))


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """Gives every `ShapeDtypeStruct` of a tree its sharding."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
