"""The interface of trackers."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from vit_jax.atomic_files import write_text


class Tracker:
    """Base class of trackers. Subclasses override what they record.

    Attributes:
        remote: whether calls wait for a server. They are then made on a thread of their own, see
            `background.Background`, and so may raise: training goes on. The `Config` of such a
            tracker has the field `close_seconds`.
        joins: whether another process can add records to the run, also while it trains. The tracker
            is then opened with `first_step` None.
    """

    remote: ClassVar[bool] = False
    joins: ClassVar[bool] = False

    def __init__(self, config: Any, workdir: pathlib.Path, first_step: int | None):
        """Opens the tracker.

        Args:
            config: keys of the tracker, an instance of its `Config`.
            workdir: folder of the run; of a run in a bucket, a local copy of its files. What is
                written there is uploaded.
            first_step: step that the run goes on from, 0 for a new run; None to add records to the
                run from beside, and leave all that it has.
        """

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Records the config of the run, as nested plain values."""

    def write_start(self, start: Mapping[str, Any], diff: str) -> None:
        """Records what this start was made with.

        Args:
            start: command, versions, devices and commit, see `provenance.describe`.
            diff: uncommitted changes, "" where there are none.
        """

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records metrics of a step."""

    def write_images(
        self, step: int, images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    ) -> None:
        """Records images of a step."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Records texts of a step."""

    def close(self) -> None:
        """Flushes and closes the tracker."""


def saved_id(path: pathlib.Path, create: Callable[[], str]) -> str:
    """Id of the run in a tracker's own records, the same for all starts of the run.

    Args:
        path: file of the workdir that holds the id.
        create: returns a new id.
    """
    if not path.exists():
        write_text(path, create() + "\n")
    return path.read_text(encoding="utf-8").strip()
