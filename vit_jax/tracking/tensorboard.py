"""Metrics for TensorBoard."""

import dataclasses
import pathlib
from collections.abc import Mapping

import tensorboardX

from vit_jax.paths import as_local_path
from vit_jax.tracking.base import Tracker


class TensorBoard(Tracker):
    """Writes event files.

    tensorboardX, since the writers of clu need TensorFlow.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the tracker.

        Attributes:
            folder: folder in the workdir.
            flush_seconds: interval of flushes to disk, seconds.
        """

        folder: str = "tensorboard"
        flush_seconds: int = 30

        def __post_init__(self) -> None:
            """Refuses a URL before the run starts."""
            as_local_path(self.folder, "event files are appended to")

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int | None):
        """Opens an event file; points after `first_step` are purged, with None no points."""
        self._writer = tensorboardX.SummaryWriter(
            str(workdir / config.folder),
            purge_step=None if first_step is None else first_step + 1,
            flush_secs=config.flush_seconds,
        )

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one point per metric."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()
