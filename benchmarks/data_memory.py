"""Memory of a process that reads tar shards, after increasing numbers of examples.

    python benchmarks/data_memory.py [--examples 200000] [--rows 10] [--workers 0]

Writes shards of small JPEGs with captions into a temporary folder, and reads, decodes and batches
them as in training. Prints the resident memory of this process, which reads with threads; with
--workers that of the largest reader process.
"""

import io
import multiprocessing
import pathlib
import tarfile
import tempfile
import time

import numpy as np
from absl import flags
from PIL import Image
from tar_pairs import add_pair

from vit_jax import cli
from vit_jax.data.augment import parse_augmentation
from vit_jax.data.examples import example_transform
from vit_jax.data.loader import Loader
from vit_jax.data.sources import open_source
from vit_jax.inputs import ImageInputs

_EXAMPLES = flags.DEFINE_integer("examples", 200_000, "Examples to read.", lower_bound=1000)
_WORKERS = flags.DEFINE_integer("workers", 0, "Reader processes.", lower_bound=0)
_ROWS = flags.DEFINE_integer("rows", 10, "Rows of the table.", lower_bound=1)
_SHARDS, _PER_SHARD, _BATCH = 10, 500, 100


def main() -> None:
    """Reads examples and prints the memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(pathlib.Path(folder))
        source = open_source(f"tar:{folder}/*.tar")
        augment = parse_augmentation("", ImageInputs(size=(32, 32)))
        transform = example_transform(("image",), augment)
        batches = Loader(source, transform, batch_size=_BATCH, seed=0, workers=_WORKERS.value)
        print("| examples | resident, MiB | seconds |\n|--:|--:|--:|")
        start, step = time.monotonic(), _EXAMPLES.value // _ROWS.value // _BATCH
        for row in range(_ROWS.value):
            for _ in range(step):
                next(batches)
            read = (row + 1) * step * _BATCH
            print(f"| {read} | {resident():.1f} | {time.monotonic() - start:.0f} |", flush=True)


def write_shards(folder: pathlib.Path) -> None:
    """Writes shards of noise, 40 x 30 px.

    Args:
        folder: destination.
    """
    rng = np.random.default_rng(0)
    for shard in range(_SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(_PER_SHARD):
                stream = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(stream, "JPEG")
                add_pair(tar, f"{shard:05d}{i:05d}", stream.getvalue(), b"a caption")


def resident() -> float:
    """Resident memory of the largest process that reads, MiB (Linux only)."""
    readers = [process.pid for process in multiprocessing.active_children()] or ["self"]
    status = [pathlib.Path(f"/proc/{reader}/status").read_text() for reader in readers]
    return max(int(text.partition("VmRSS:")[2].split()[0]) for text in status) / 1024


if __name__ == "__main__":
    cli.run(main)
