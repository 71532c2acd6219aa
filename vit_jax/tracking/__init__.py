"""Where the metrics of a run go: JSON lines, TensorBoard, W&B, MLflow, and trackers of your own.

    config.trackers.wandb = {"project": "ablations"}
    config.trackers.mine = {"name": "my_project.trackers:Mine", "project": "ablations"}

A tracker is a component (see `vit_jax.components`) with the methods of `base.Tracker`.
"""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from vit_jax.components import Registry
from vit_jax.errors import UserError
from vit_jax.paths import StrPath, as_local_path, is_url
from vit_jax.tracking.background import Background
from vit_jax.tracking.base import Tracker
from vit_jax.tracking.mirror import Mirror

logger = logging.getLogger(__name__)

TRACKERS = Registry(
    "tracker",
    {
        "jsonl": "vit_jax.tracking.jsonl:JsonLines",
        "mlflow": "vit_jax.tracking.mlflow:MLflow",
        "tensorboard": "vit_jax.tracking.tensorboard:TensorBoard",
        "wandb": "vit_jax.tracking.wandb:WeightsAndBiases",
    },
)


class Trackers:
    """All trackers of a run. Only process 0 writes."""

    def __init__(
        self,
        blocks: Mapping[str, Mapping[str, Any]],
        workdir: StrPath,
        first_step: int | None = 0,
    ):
        """Opens the trackers.

        Args:
            blocks: label -> keys of the tracker; `name` is the label where it is not given.
            workdir: folder of the run.
            first_step: step that the run goes on from; what was written of later steps is dropped.
                None to add records to the run from beside, see `joining`.

        Raises:
            UserError: unknown tracker or key.
        """
        selected = self.check(blocks)
        self._trackers: list[Tracker] = []
        self._mirror: Mirror | None = None
        if jax.process_index() == 0:
            if is_url(workdir):
                self._mirror = Mirror(workdir)
                folder = self._mirror.folder
            else:
                folder = as_local_path(workdir, "trackers append to files")
            for label, (component, config) in zip(blocks, selected, strict=True):
                tracker = functools.partial(component, config, folder, first_step)
                self._trackers.append(
                    Background(label, tracker, close_seconds=config.close_seconds)
                    if component.remote
                    else tracker()
                )

    @staticmethod
    def check(blocks: Mapping[str, Mapping[str, Any]]) -> list[tuple[Any, Any]]:
        """Selects the trackers without opening them; raises as `__init__`."""
        return [
            TRACKERS.select({"name": label, **block}, f"config.trackers.{label}")
            for label, block in blocks.items()
        ]

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Records the config of the run."""
        for tracker in self._trackers:
            tracker.write_config(config)

    def write_start(self, start: Mapping[str, Any], diff: str) -> None:
        """Records what this start was made with, see `provenance.record`."""
        for tracker in self._trackers:
            tracker.write_start(start, diff)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Records metrics of a step."""
        values = {name: float(np.asarray(value)) for name, value in scalars.items()}
        for tracker in self._trackers:
            tracker.write_scalars(step, values)
        if self._mirror:
            self._mirror.upload_when_due()

    def write_images(
        self, step: int, images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    ) -> None:
        """Records images of a step."""
        for tracker in self._trackers:
            tracker.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Records texts of a step."""
        for tracker in self._trackers:
            tracker.write_texts(step, texts)

    def flush(self) -> None:
        """Returns once what was recorded is in the workdir; of a killed run, no line is missing."""
        if self._mirror:
            self._mirror.upload()

    def close(self) -> None:
        """Flushes and closes all trackers."""
        for tracker in self._trackers:
            tracker.close()
        if self._mirror:
            self._mirror.close()


def joining(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Chooses the trackers to which another process than training can add records.

    Args:
        blocks: label -> keys of the tracker.

    Returns:
        The blocks of trackers that have `joins`. Those whose package or key is not on this machine
        are left out with a warning.
    """
    found = {}
    for label, block in blocks.items():
        try:
            ((component, _),) = Trackers.check({label: block})
        except UserError as error:
            logger.warning("Tracker %s gets no records: %s", label, error)
            continue
        if component.joins:
            found[label] = block
    return found
