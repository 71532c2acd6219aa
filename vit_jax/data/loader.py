"""Endless training batches with Grain: shuffled, augmented, sharded by process, resumable.

The order and every random choice depend on the seed and on an example's global position alone, so
that any number of reader threads, reader processes or training processes sees the same global
batches, and the position of a run is one number: the examples consumed so far.
"""

import collections
import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, Self

import grain
import numpy as np
from absl import flags

from vit_jax.data.broken import BrokenLog, RandomAccess, ReadExample, Transform
from vit_jax.data.sources import Mixture
from vit_jax.errors import UserError

# Grain counts batches in floats: from here on, batches of one would be too many for an integer.
_END = 2**53

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Batches(Iterator[dict[str, np.ndarray]]):
    """Iterator over this process's fraction of the global batches."""

    def __init__(
        self,
        source: RandomAccess,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        groups: Sequence[Sequence[int]] | None = None,
        repeats: int = 1,
        max_broken_fraction: float = 0.0,
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Declares the pipeline; reading starts with the first batch.

        Args:
            source: random access to examples.
            transform: example and NumPy generator to a dict of equally shaped arrays.
            batch_size: global, over all processes.
            seed: of the order, of augmentation and of every other choice.
            groups: rows of `source` of which an epoch takes one each; None for all rows.
            repeats: how many times in a row an example comes, transformed anew each time; an epoch
                is as long as without.
            max_broken_fraction: fraction of examples that may be broken, that is, raise UserError or OSError;
                the next good one is taken in place of each.
            workers: reader processes; 0 reads with threads of this process.
            process_index: of this training process.
            process_count: training processes.
        """
        if batch_size % process_count:
            raise UserError(
                f"batch_size={batch_size} is not a multiple of the {process_count} processes"
            )
        if repeats < 1:
            raise UserError(f"config.data.repeats={repeats}: expected 1, for one view, or more")
        self.batch_size, self._workers = batch_size, workers
        self._process = (process_index, process_count)
        self.epoch_examples = len(source) if groups is None else len(groups)
        if self.epoch_examples == 0:
            raise UserError("the training source is empty")
        self._order = _order(source, groups, seed)
        if repeats > 1:
            positions = grain.MapDataset.range(_END).seed(seed)
            self._order = positions.map(_Repeat(self._order, repeats))
        self._dataset = self._order.random_map(ReadExample(source, transform, groups))
        self._broken = BrokenLog(max_broken_fraction)
        self._broken_before = 0
        # Of the newest batches, since some are read ahead of the step that trains on them.
        self._history: collections.deque[tuple[int, int]] = collections.deque([(0, 0)], 100)
        self._consumed = self._read = 0
        self._iterator: Iterator | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start()
        batch, reasons = next(self._iterator)
        self._consumed += self.batch_size
        self._read += self.batch_size // self._process[1]
        self._broken.add(reasons, self._read)
        self._history.append((self._consumed, self._broken_before + self._broken.count))
        return batch

    def broken(self, examples: int) -> int:
        """Broken examples that this process passed over in the run's first `examples`.

        The sum over the processes is the run's. Batches read ahead, up to 100, are not counted.
        """
        return next((count for end, count in reversed(self._history) if end <= examples), 0)

    def rows(self, first: int, last: int) -> list[int]:
        """Which rows of the source, or of `groups`, are at global positions [first, last)."""
        return [int(self._order[i]) for i in range(first, last)]

    def get_state(self) -> dict[str, int]:
        """Position, the same on every process, and the broken examples of this one."""
        return {"examples": self._consumed, "broken": self.broken(self._consumed)}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues after `state["examples"]` examples, with whatever workers and processes.

        `state["broken"]`, the run's, is counted on by process 0.
        """
        self._consumed = int(state["examples"])
        before = int(state.get("broken", 0)) if self._process[0] == 0 else 0
        self._broken_before = before - self._broken.count
        self._history.clear()
        self._history.append((self._consumed, before))
        self._iterator = None

    def _start(self) -> Iterator:
        index, count = self._process
        # A global batch is cut into one part a process, in order.
        stretch = self._dataset[self._consumed : _END]
        parts = stretch.batch(self.batch_size // count, batch_fn=_collate)
        dataset = parts[index::count]
        # Threads wait for one another in Python code: two hide the reading, more only contend. A
        # worker process is ahead by its own buffer, and a thread in it only costs time.
        options = grain.ReadOptions(num_threads=0 if self._workers else 2, prefetch_buffer_size=4)
        iterable = dataset.to_iter_dataset(options)
        if self._workers:
            # Grain reads absl flags when it starts workers; a notebook has not parsed any.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            iterable = iterable.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2),
                worker_init_fn=_keep_freed_memory,
            )
        return iter(iterable)


def _order(
    source: RandomAccess, groups: Sequence[Sequence[int]] | None, seed: int
) -> grain.MapDataset:
    """Indices without end, in a new order each epoch.

    A mixture by weight has so many of each source in every stretch of the order, and each source
    has epochs of its own.
    """
    if not isinstance(source, Mixture) or source.weights is None:
        count = len(source) if groups is None else len(groups)
        return grain.MapDataset.range(count).seed(seed).shuffle().repeat(None)
    if groups is not None:
        raise UserError("config.data.group_by does not go with sources mixed by weight")
    parts = [
        grain.MapDataset.range(part.start, part.stop).seed(seed + number).shuffle().repeat(None)
        for number, part in enumerate(source.parts)
    ]
    return grain.MapDataset.mix(parts, source.weights).seed(seed)


class _Repeat:
    """Position to the index that `order` has there when it gives each one so often."""

    def __init__(self, order: grain.MapDataset, repeats: int):
        self._order, self._repeats = order, repeats

    def __call__(self, position: int) -> int:
        return self._order[position // self._repeats]


def _keep_freed_memory(worker: int, workers: int) -> None:
    """Has glibc keep up to 128 MiB that images freed, which is faster by a third.

    Else it hands them back to the system, which clears every page anew for the next image.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 128 << 20)


def _collate(
    examples: Sequence[tuple[dict[str, Any], list[str]]],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Stacked arrays and the reasons of all broken examples, which so reach the main process."""
    rows = [row for row, _ in examples]
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return batch, [reason for _, reasons in examples for reason in reasons]
