"""Endless training batches with Grain: shuffled, augmented, sharded by process, resumable.

Order and random numbers depend only on the seed and on an example's global position. So any number
of reader threads, reader processes or training processes sees the same global batches, and the
position of a run is one number: the examples consumed so far.
"""

import collections
import ctypes
import json
import logging
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Self

import grain
import numpy as np
from absl import flags

from vit_jax import interruption
from vit_jax.data.broken import (
    LEFT_OUT,
    BrokenLog,
    LeftOutLog,
    RandomAccess,
    ReadExample,
    Transform,
    read_all,
)
from vit_jax.data.draw import Draw
from vit_jax.data.sources.base import Source
from vit_jax.data.sources.mixture import Mixture
from vit_jax.errors import UserError, unknown

# Grain counts batches in floats, which hold integers exactly up to here.
_END = 2**53

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Loader(Iterator[dict[str, np.ndarray]]):
    """Iterator over this process's part of the global batches.

    `get_state` and `set_state` save and restore the position.

    Attributes:
        left_out: counts of boxes that this process has left out.
    """

    def __init__(
        self,
        source: RandomAccess,
        transform: Transform | Sequence[Transform],
        *,
        draw: Draw | None = None,
        batch_size: int,
        seed: int,
        groups: Sequence[Sequence[int]] | None = None,
        repeats: int = 1,
        max_broken_fraction: float = 0.0,
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Declares the pipeline; reading starts with the first batch.

        Args:
            source: examples by index.
            transform: maps an example and a NumPy generator to a dict of arrays, whose shapes are
                the same for all examples; with `draw` a sequence of them, one for each choice.
            draw: chooses the transform of each batch; None for a single transform.
            batch_size: global batch size, over all processes.
            seed: PRNG seed for the order, augmentation and every other choice.
            groups: rows of `source` per group, of which an epoch takes one each; None for all rows.
            repeats: number of times in a row that an example comes, each time transformed again; an
                epoch has as many examples as without.
            max_broken_fraction: maximum fraction of broken examples, that is, examples that raise
                UserError or OSError. Each is replaced by the next good one.
            workers: number of reader processes; 0 reads with threads of this process.
            process_index: index of this training process.
            process_count: number of training processes.

        Raises:
            UserError: an empty source, or arguments that do not fit together.
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
        transforms = transform if isinstance(transform, Sequence) else [transform]
        readers = [self._order.random_map(ReadExample(source, x, groups)) for x in transforms]
        self._dataset = readers[0]
        if draw is not None and len(readers) > 1:
            drawn = _Drawn(readers, draw, batch_size)
            self._dataset = grain.MapDataset.range(_END).map(drawn)
        self._broken = BrokenLog(max_broken_fraction)
        self.left_out = LeftOutLog()
        self._broken_before = 0
        # (examples, broken) of the newest batches, because batches are read ahead of their step.
        self._history: collections.deque[tuple[int, int]] = collections.deque([(0, 0)], 100)
        self._consumed = self._read = 0
        self._iterator: Iterator | None = None

    def __iter__(self) -> Self:
        """The loader itself."""
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Reads this process's part of the next batch.

        Raises:
            UserError: too many examples are broken.
        """
        if self._iterator is None:
            self._iterator = self._start()
        batch, reasons, left_out = next(self._iterator)
        self._consumed += self.batch_size
        self._read += self.batch_size // self._process[1]
        self._broken.add(reasons, self._read)
        self.left_out.add(left_out, self._read)
        self._history.append((self._consumed, self._broken_before + self._broken.count))
        return batch

    def broken(self, examples: int) -> int:
        """Number of broken examples that this process replaced among the run's first ones.

        The sum over processes is the run's. Up to 100 batches that were read ahead do not count.

        Args:
            examples: number of the run's first examples, over all processes.
        """
        return next((count for end, count in reversed(self._history) if end <= examples), 0)

    def rows(self, first: int, last: int) -> list[int]:
        """Rows of the source, or of `groups`, at the global positions [first, last)."""
        return [int(self._order[i]) for i in range(first, last)]

    def get_state(self) -> dict[str, int]:
        """Position, which is the same on every process, and this process's broken examples."""
        return {"examples": self._consumed, "broken": self.broken(self._consumed)}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues at a position, with any number of workers and processes.

        Args:
            state: `examples`, the number of examples consumed, and `broken`, the run's number of
                broken examples, which process 0 continues to count.
        """
        self._consumed = int(state["examples"])
        before = int(state.get("broken", 0)) if self._process[0] == 0 else 0
        self._broken_before = before - self._broken.count
        self._history.clear()
        self._history.append((self._consumed, before))
        self._iterator = None

    def _start(self) -> Iterator:
        index, count = self._process
        # A global batch consists of one part per process, in order.
        stretch = self._dataset[self._consumed : _END]
        parts = stretch.batch(self.batch_size // count, batch_fn=_collate)
        dataset = parts[index::count]
        # Threads wait for each other in Python code: two hide the latency of reading, more only
        # compete. A worker process has a buffer of its own and needs no thread.
        options = grain.ReadOptions(num_threads=0 if self._workers else 2, prefetch_buffer_size=4)
        iterable = dataset.to_iter_dataset(options)
        if self._workers:
            # Grain reads absl flags when it starts workers; a notebook has not parsed any.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            iterable = iterable.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2),
                worker_init_fn=_start_worker,
            )
        return iter(iterable)


def group_rows(
    fields: Sequence[str], source: Source, max_broken_fraction: float = 0.0
) -> list[list[int]] | None:
    """Groups the rows of a source by the values of fields, for `Loader`.

    Args:
        fields: names of example fields; rows that agree in all of them form a group.
        source: training source.
        max_broken_fraction: maximum fraction of examples that cannot be read or lack a field, which
            are counted, logged and left out.

    Returns:
        Rows of each group, in the order of the first rows; None without fields.

    Raises:
        UserError: too many examples lack a field, or all of them.
    """
    if not fields:
        return None

    def values(example: dict[str, Any]) -> str:
        if missing := [field for field in fields if field not in example]:
            raise unknown(missing[0], example, "field in config.data.group_by,")
        return json.dumps([example[field] for field in fields], sort_keys=True, default=str)

    groups: dict[str, list[int]] = {}
    for row, key in read_all(source, values, max_broken_fraction, "Grouping examples"):
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _order(
    source: RandomAccess, groups: Sequence[Sequence[int]] | None, seed: int
) -> grain.MapDataset:
    """Endless indices, in a new order each epoch.

    A weighted mixture takes its fractions in every stretch of the order; each of its sources has
    epochs of its own.
    """
    if not isinstance(source, Mixture) or source.weights is None:
        count = len(source) if groups is None else len(groups)
        return grain.MapDataset.range(count).seed(seed).shuffle().repeat(None)
    if groups is not None:
        raise UserError("config.data.group_by cannot be combined with a weighted mixture")
    parts = [
        grain.MapDataset.range(part.start, part.stop).seed(seed + number).shuffle().repeat(None)
        for number, part in enumerate(source.parts)
    ]
    return grain.MapDataset.mix(parts, source.weights).seed(seed)


class _Repeat:
    """Maps a position to an index of an order in which each index comes several times in a row."""

    def __init__(self, order: grain.MapDataset, repeats: int) -> None:
        self._order, self._repeats = order, repeats

    def __call__(self, position: int) -> int:
        return self._order[position // self._repeats]


class _Drawn:
    """Maps a position to its example, read with the transform that is drawn for its batch."""

    def __init__(self, readers: list[grain.MapDataset], draw: Draw, batch_size: int) -> None:
        self._readers, self._draw, self._batch_size = readers, draw, batch_size

    def __call__(self, position: int) -> Any:
        return self._readers[self._draw(position // self._batch_size + 1)][position]


def _start_worker(worker: int, workers: int) -> None:
    """Prepares a reader process, which ends with the training process: that one handles signals."""
    for number in interruption.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if worker:  # what the reader processes would all say is said once
        logging.getLogger("vit_jax").setLevel(logging.ERROR)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets glibc keep up to 128 MiB of freed memory, which makes reading a third faster.

    Otherwise it returns the memory of each image to the system, which clears every page again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # absent from other C libraries
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 128 << 20)


def _collate(
    examples: Sequence[tuple[dict[str, Any], list[str]]],
) -> tuple[dict[str, np.ndarray], list[str], collections.Counter[str]]:
    """Stacks examples, and joins errors and counts for the main process."""
    rows = [row for row, _ in examples]
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0] if key != LEFT_OUT}
    left_out = collections.Counter[str]()
    for row in rows:
        left_out.update(row.get(LEFT_OUT, {}))
    return batch, [reason for _, reasons in examples for reason in reasons], left_out
