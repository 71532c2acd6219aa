"""Where the metrics of `evaluate.py` go, beside the screen."""

import json
import pathlib
from collections.abc import Mapping
from typing import IO, Any, Self

import jax
import tensorboardX

FILE_NAME = "evaluations.jsonl"


class Results:
    """Appends a line of JSON and TensorBoard points for every evaluation, once it is done.

    Only process 0 writes, and only where there is a folder.
    """

    def __init__(self, folder: str | None, weights: str, step: int):
        """Opens the files.

        Args:
            folder: for `evaluations.jsonl` and `tensorboard/`; None for none.
            weights: what was evaluated, for the line.
            step: of training.
        """
        self._weights, self._step = weights, step
        self._file: IO[str] | None = None
        self._board: Any = None
        if folder is not None and jax.process_index() == 0:
            root = pathlib.Path(folder)
            root.mkdir(parents=True, exist_ok=True)
            self._file = (root / FILE_NAME).open("a", encoding="utf-8")
            self._board = tensorboardX.SummaryWriter(str(root / "tensorboard"))

    def write(self, figures: Mapping[str, float]) -> None:
        """Adds the metrics of one evaluation."""
        if self._file is None:
            return
        line = {"weights": self._weights, "step": self._step, **figures}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(name, value, self._step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()
