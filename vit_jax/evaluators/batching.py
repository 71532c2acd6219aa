"""Batches of whole sources: in order, padded, read ahead of the devices."""

import concurrent.futures
import os
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from vit_jax.errors import UserError
from vit_jax.parallel.mesh import batch_sharding, batch_shards, to_devices

_READERS = min(16, os.cpu_count() or 1)  # threads that decode the next batch
_LOG_SECONDS = 30.0  # interval of progress lines where stderr is not a terminal


def not_finite(outputs: str) -> UserError:
    """Builds the error for outputs of a model that are NaN or infinite.

    Args:
        outputs: what they are, as "boxes of image 3".
    """
    return UserError(
        f"{outputs} are NaN or infinite: the weights are damaged, or they overflow in compute.dtype"
    )


def local_part(batch_size: int, shards: int) -> range:
    """Positions in a batch of the rows of this process.

    Each process has an equal, contiguous part. A batch is padded to a multiple of the devices, so
    that its first `batch_size` rows are the same on any number of them.

    Args:
        batch_size: rows per batch, without padding.
        shards: number of parts that a batch is split into over the devices of all processes.
    """
    size = -(-batch_size // shards) * shards // jax.process_count()
    return range(jax.process_index() * size, (jax.process_index() + 1) * size)


def padded_batches(
    read: Callable[[int], dict[str, np.ndarray]],
    *,
    start: int,
    stop: int,
    batch_size: int,
    part: range,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of each global batch that belong to this process.

    Threads read the next batch while the devices compute.

    Args:
        read: returns the arrays of one row.
        start: first row.
        stop: end of the rows.
        batch_size: rows per batch over all processes, without padding.
        part: positions in a batch to read, see `local_part`; positions behind the rows are filled
            with copies of the last row.
    """
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        ahead: list[concurrent.futures.Future[dict[str, np.ndarray]]] = []
        for first in range(start, stop + batch_size, batch_size):
            current, ahead = ahead, []
            if first < stop:
                last = min(first + batch_size, stop) - 1
                ahead = [pool.submit(read, min(first + i, last)) for i in part]
            if current:
                examples = [future.result() for future in current]
                yield {key: np.stack([e[key] for e in examples]) for key in examples[0]}


def device_batches(
    read: Callable[[int], dict[str, np.ndarray]],
    *,
    mesh: Mesh,
    start: int = 0,
    stop: int,
    batch_size: int,
    description: str,
) -> Iterator[tuple[dict[str, jax.Array], range]]:
    """Yields global batches on the devices and the rows that each holds, with a progress bar.

    Args:
        read: returns the arrays of one row.
        mesh: mesh of the devices.
        start: first row.
        stop: end of the rows.
        batch_size: rows per batch over all processes, without padding.
        description: name of the work.
    """
    part = local_part(batch_size, batch_shards(mesh))
    batches = padded_batches(read, start=start, stop=stop, batch_size=batch_size, part=part)
    with progress_bar(description, total=stop, initial=start) as bar:
        for first, batch in zip(range(start, stop, batch_size), batches, strict=True):
            rows = range(first, min(first + batch_size, stop))
            yield to_devices(batch, batch_sharding(mesh)), rows
            bar.update(len(rows))


def progress_bar(description: str, *, total: int, initial: int = 0) -> tqdm:
    """Makes a progress bar on stderr, which only process 0 shows.

    Where stderr is not a terminal, it prints at most one line every 30 seconds, and none for work
    that ends sooner.

    Args:
        description: name of the work.
        total: number of rows.
        initial: number of rows that are already done.
    """
    live = sys.stderr.isatty()
    seconds = 0.5 if live else _LOG_SECONDS
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        disable=jax.process_index() > 0,
        leave=False,
        delay=seconds,
        mininterval=seconds,
        maxinterval=seconds,
        miniters=1,
        dynamic_ncols=True,
        bar_format=None if live else "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left\n",
    )
