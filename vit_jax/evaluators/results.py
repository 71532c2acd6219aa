"""Results of `vit_jax.evaluate` on disk."""

import json
import logging
import pathlib
from collections.abc import Mapping

import jax

from vit_jax.atomic_files import append_text
from vit_jax.paths import as_path, is_url
from vit_jax.tracking.tensorboard import TensorBoard

logger = logging.getLogger(__name__)

FILE_NAME = "evaluations.jsonl"


def evaluated_steps(folder: str | None, weights: str) -> set[int]:
    """Training steps of a model that the log of a folder has.

    Args:
        folder: folder of `evaluations.jsonl`; None for none.
        weights: name of the model.
    """
    path = None if folder is None else as_path(folder) / FILE_NAME
    if path is None or not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"] for line in lines if line["weights"] == weights}


class EvaluationLog:
    """Appends the metrics of each evaluation to JSON lines and TensorBoard, as soon as it is done.

    A line holds the metrics, and with them `weights` and `step`. Only process 0 writes. TensorBoard
    files are written to local folders only.
    """

    def __init__(self, folder: str | None, weights: str, step: int):
        """Opens the files; what they hold already stays.

        Args:
            folder: folder of `evaluations.jsonl` and `tensorboard/`, local or in a bucket; None
                writes nothing.
            weights: name of the evaluated model.
            step: training step of the evaluated model.
        """
        self._weights, self._step = weights, step
        self._path = self._board = None
        if folder is None or jax.process_index():
            return
        root = as_path(folder)
        self._path = root / FILE_NAME
        append_text(self._path, "")  # a folder that cannot be written is found now
        if is_url(root):
            logger.info("TensorBoard files are not written to a bucket.")
        else:
            config = TensorBoard.Config()
            self._board = TensorBoard(config, pathlib.Path(root), first_step=None)

    def write(self, metrics: Mapping[str, float]) -> None:
        """Appends the metrics of one evaluation."""
        if self._path is None:
            return
        line = {"weights": self._weights, "step": self._step, **metrics}
        append_text(self._path, json.dumps(line) + "\n")
        if self._board is not None:
            self._board.write_scalars(self._step, metrics)

    def close(self) -> None:
        """Closes the files."""
        if self._board is not None:
            self._board.close()
