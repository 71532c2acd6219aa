"""Endless training batches with Grain: shuffled, augmented, sharded by process, resumable.

The order and every random choice depend on the seed and on an example's global position alone, so
that any number of reader threads, reader processes or training processes sees the same global
batches, and the position of a run is one number: the examples consumed so far.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import grain
import numpy as np
from absl import flags

from vit_jax.errors import UserError

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]


class RandomAccess(Protocol):
    """What a source must offer: a length and examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class OneOfGroup:
    """Draws one member of a group: an epoch holds each group once.

    With groups of equal captions no batch holds the same caption twice, which a contrastive loss
    would count as a negative.
    """

    def __init__(self, source: RandomAccess, groups: Sequence[Sequence[int]]):
        self.source, self.groups = source, groups

    def __call__(self, index: int, rng: np.random.Generator) -> Example:
        members = self.groups[index]
        return self.source[members[int(rng.integers(len(members)))]]


class Batches(Iterator[dict[str, np.ndarray]]):
    """Iterator over this process's share of the global batches."""

    def __init__(
        self,
        source: RandomAccess,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        groups: Sequence[Sequence[int]] | None = None,
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
            workers: reader processes; 0 reads with threads of this process.
            process_index: of this training process.
            process_count: training processes.
        """
        if batch_size % process_count:
            raise UserError(
                f"batch_size={batch_size} is not a multiple of the {process_count} processes"
            )
        self.batch_size, self._workers = batch_size, workers
        self._process = (process_index, process_count)
        count = len(source) if groups is None else len(groups)
        if count == 0:
            raise UserError("the training source is empty")
        self.epoch_examples = count
        self._order = dataset = grain.MapDataset.range(count).seed(seed).shuffle().repeat(None)
        if groups is None:
            dataset = dataset.map(source.__getitem__)
        else:
            dataset = dataset.random_map(OneOfGroup(source, groups))
        self._dataset = dataset.random_map(transform)
        self._consumed = 0
        self._iterator: Iterator | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._consumed += self.batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """Position: global examples consumed. The same on every process."""
        return {"examples": self._consumed}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues after `state["examples"]` examples, with whatever workers and processes."""
        self._consumed = int(state["examples"])
        self._iterator = None

    def rows(self, first: int, last: int) -> list[int]:
        """Which rows of the source, or of `groups`, are at global positions [first, last)."""
        return [int(self._order[i]) for i in range(first, last)]

    def _start(self) -> Iterator:
        index, count = self._process
        # A global batch is cut into one part a process, in order.
        parts = self._dataset[self._consumed :].batch(self.batch_size // count)
        dataset = parts[index::count]
        # Threads wait for one another in Python code: two hide the reading, more only contend.
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        iterable = dataset.to_iter_dataset(options)
        if self._workers:
            # Grain reads absl flags when it starts workers; a notebook has not parsed any.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            iterable = iterable.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
            )
        return iter(iterable)
