"""Results of `vit_jax.evaluate` on disk."""

import json
import pathlib
from collections.abc import Mapping
from typing import IO

import jax

from vit_jax.tracking.tensorboard import TensorBoard

FILE_NAME = "evaluations.jsonl"


class EvaluationLog:
    """Appends the metrics of each evaluation to JSON lines and TensorBoard, as soon as it is done.

    A line holds the metrics, and with them `weights` and `step`. Only process 0 writes.
    """

    def __init__(self, folder: str | None, weights: str, step: int):
        """Opens the files; what they hold already stays.

        Args:
            folder: folder of `evaluations.jsonl` and `tensorboard/`; None writes nothing.
            weights: name of the evaluated model.
            step: training step of the evaluated model.
        """
        self._weights, self._step = weights, step
        self._file: IO[str] | None = None
        self._board: TensorBoard | None = None
        if folder is not None and jax.process_index() == 0:
            root = pathlib.Path(folder)
            root.mkdir(parents=True, exist_ok=True)
            self._file = (root / FILE_NAME).open("a", encoding="utf-8")
            self._board = TensorBoard(TensorBoard.Config(), root, first_step=None)

    def write(self, metrics: Mapping[str, float]) -> None:
        """Appends the metrics of one evaluation."""
        if self._file is None or self._board is None:
            return
        line = {"weights": self._weights, "step": self._step, **metrics}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._board.write_scalars(self._step, metrics)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()
