"""The first examples of a batch, as the model sees them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from vit_jax.data.crops import GLOBAL
from vit_jax.errors import UserError
from vit_jax.training.hooks.base import Hook
from vit_jax.training.run import Run


class Samples(Hook):
    """Sends the first augmented images of a batch to the trackers, and their tokens as text.

    The batches are that of the first step after each start, and those of the multiples of an
    interval. Texts are left out where the tokenizer does not decode.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the hook.

        Attributes:
            count: number of examples.
            every_steps: interval, steps; 0 for the first step of each start alone.
        """

        count: int = 8
        every_steps: int = 0

    def __init__(self, config: Config):
        """Takes the keys of the hook."""
        self.config = config

    def on_start(self, run: Run) -> None:
        """Wraps the reading of batches."""
        run.batches = self._watched(run, run.batches)

    def _watched(self, run: Run, batches: Iterator[Any]) -> Iterator[Any]:
        first = run.step + 1
        for batch in batches:
            step, interval = run.step + 1, self.config.every_steps
            if step == first or (interval and step % interval == 0):
                self._write(run, step, batch)
            yield batch

    def _write(self, run: Run, step: int, batch: dict[str, jax.Array]) -> None:
        if jax.process_index():
            return  # no tracker writes here
        packed = batch["image"] if "image" in batch else batch[GLOBAL]
        inputs = run.variant.experiment.inputs
        rows = self._rows(packed).reshape(-1, inputs.packed_size)
        images = [inputs.unpack(row) for row in rows]
        run.trackers.write_images(step, {"samples/images": side_by_side(images)})
        tokenizer = run.experiment.tokenizer
        if tokenizer is None or "tokens" not in batch or batch["tokens"].ndim != 2:
            return
        with contextlib.suppress(UserError):  # a vocabulary that does not decode
            texts = [tokenizer.decode(row.tolist()) for row in self._rows(batch["tokens"])]
            lines = "".join(f"{i}. {text}\n" for i, text in enumerate(texts, 1))
            run.trackers.write_texts(step, {"samples/texts": lines})

    def _rows(self, array: jax.Array) -> np.ndarray:
        """The first rows of this process, which has no access to those of others."""
        return np.asarray(array.addressable_shards[0].data)[: self.config.count]


def side_by_side(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
) -> UInt8[np.ndarray, "height total_width 3"]:
    """Places images in one row, white below those that are not as high as the highest."""
    height = max(len(image) for image in images)
    padded = [
        np.pad(x, ((0, height - len(x)), (0, 0), (0, 0)), constant_values=255) for x in images
    ]
    return np.concatenate(padded, axis=1)
