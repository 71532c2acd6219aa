"""The interface of trackers."""

import pathlib
from collections.abc import Mapping
from typing import Any


class Tracker:
    """Base class of trackers. Subclasses override what they record."""

    def __init__(self, config: Any, workdir: pathlib.Path, first_step: int):
        """Opens the tracker.

        Args:
            config: keys of the tracker, an instance of its `Config`.
            workdir: folder of the run; of a run in a bucket, a local copy of its files. What is
                written there is uploaded.
            first_step: step that the run goes on from, 0 for a new run.
        """

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Records the config of the run, as nested plain values."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records metrics of a step."""

    def close(self) -> None:
        """Flushes and closes the tracker."""
