"""Metrics, images and texts for TensorBoard."""

import dataclasses
import json
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorboardX
from jaxtyping import UInt8

from vit_jax.paths import as_local_path
from vit_jax.tracking.base import Tracker


class TensorBoard(Tracker):
    """Writes event files.

    tensorboardX, since the writers of clu need TensorFlow.
    """

    joins: ClassVar[bool] = True

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
            # Files are named by the second, and one of the same name is overwritten.
            filename_suffix=f".{secrets.token_hex(4)}",
        )
        self._first_step = first_step or 0

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Adds the config as a text."""
        self._add_code("config", json.dumps(config, indent=2))

    def write_start(self, start: Mapping[str, Any], diff: str) -> None:
        """Adds the start and its uncommitted changes as texts."""
        self._add_code("provenance/start", json.dumps(start, indent=2))
        if diff:
            self._add_code("provenance/uncommitted_changes", diff)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one point per metric."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_images(
        self, step: int, images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    ) -> None:
        """Adds images."""
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Adds texts, which TensorBoard shows as Markdown."""
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()

    def _add_code(self, name: str, text: str) -> None:
        """Adds a text that Markdown leaves as it is: indented by four spaces."""
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        self._writer.add_text(name, indented, self._first_step)
