"""Metrics as JSON lines."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import IO

from vit_jax.atomic_files import write_text
from vit_jax.paths import as_local_path
from vit_jax.tracking.base import Tracker


class JsonLines(Tracker):
    """Appends one object per call, with the key `step`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the tracker.

        Attributes:
            file: name of the file in the workdir.
        """

        file: str = "metrics.jsonl"

        def __post_init__(self) -> None:
            """Refuses a URL before the run starts."""
            as_local_path(self.file, "metrics are appended")

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int):
        """Opens the file; lines after `first_step`, which a new start repeats, are dropped."""
        path = workdir / config.file
        _drop_lines_after(path, first_step)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends a line."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # a line that a kill cut short
            continue
    write_text(path, "".join(kept))
