"""Speed of the input pipeline compared with open_clip's WebDataset pipeline and a Pillow loop.

    pip install open_clip_torch webdataset==0.2.86   # without them open_clip is skipped
    python benchmarks/decode_speed.py [--scale 0.08]

The data are tar shards of 500 x 375 JPEGs with captions, cropped from scikit-learn's two photos.
Each pipeline applies a random resized crop to 224 px and a flip, in batches of 256, with one and
with two workers, each time in a new process. The table shows images per second from the second
batch on, the best of several rounds. The Pillow loop has no workers and no captions: it opens,
decodes, crops and resizes (bicubic with antialias, as open_clip) and stacks uint8.
"""

import argparse
import importlib.util
import io
import itertools
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from PIL import Image
from sklearn.datasets import load_sample_images
from tar_pairs import add_pair

from vit_jax import cli
from vit_jax.data.augment import parse_augmentation
from vit_jax.data.augment.geometry import RandomResizedCrop
from vit_jax.data.examples import example_transform
from vit_jax.data.loader import Loader
from vit_jax.data.sources import open_source
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.inputs import ImageInputs

_SCALE = flags.DEFINE_float(
    "scale", 0.08, "Smallest area of a crop, fraction of the image; open_clip's default is 0.9."
)
_BATCHES = flags.DEFINE_integer("batches", 12, "Batches per measurement, after the first.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each pipeline; the best counts.")
_PIPELINE = flags.DEFINE_string("pipeline", "", "Measures only this pipeline, on --shards.")
_SHARDS = flags.DEFINE_string("shards", "", "Folder of shards, for --pipeline.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Worker processes, for --pipeline.")
_COUNT, _PER_SHARD, _BATCH, _SIZE = 8, 640, 256, 224
_INPUTS = ImageInputs(size=(_SIZE, _SIZE))
_INPUTS = ImageInputs(size=(_SIZE, _SIZE))


def vit_jax(folder: pathlib.Path, workers: int) -> Iterator[Any]:
    """Input pipeline of `train`: tar index, reduced decoding, CLIP's tokenizer."""
    augment = parse_augmentation(f"random_resized_crop(({_SCALE.value}, 1.0))|flip", _INPUTS)
    tokenizer = open_tokenizer("clip", context_length=77, vocab_size=49408)
    transform = example_transform(("image", "tokens"), augment, tokenizer)
    source = open_source(f"tar:{folder}/*.tar")
    return Loader(source, transform, batch_size=_BATCH, seed=0, workers=workers)


def open_clip(folder: pathlib.Path, workers: int) -> Iterator[Any]:
    """Training pipeline of open_clip, with torchvision's flip."""
    import open_clip
    from open_clip_train.data import get_wds_dataset

    preprocess = open_clip.image_transform(
        _SIZE, is_train=True, aug_cfg={"scale": (_SCALE.value, 1.0)}
    )
    args = argparse.Namespace(
        train_data=f"{folder}/{{00000..{_COUNT - 1:05d}}}.tar",
        train_num_samples=10**6,
        train_data_upsampling_factors=None,
        dataset_resampled=True,
        seed=0,
        batch_size=_BATCH,
        workers=workers,
        world_size=1,
    )
    data = get_wds_dataset(args, preprocess, True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    return iter(data.dataloader)


def pillow(folder: pathlib.Path, workers: int) -> Iterator[Any]:
    """Plain loop with Pillow."""
    crop, rng = RandomResizedCrop((_SCALE.value, 1.0), inputs=_INPUTS), np.random.default_rng(0)
    source = open_source(f"tar:{folder}/*.tar")
    files = [source[i]["image"].data for i in range(len(source))]
    stream = itertools.cycle(files)
    while True:
        yield np.stack([_pillow_crop(next(stream), crop, rng) for _ in range(_BATCH)])


def _pillow_crop(data: bytes, crop: RandomResizedCrop, rng: np.random.Generator) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = crop.box(image.height, image.width, rng)
    box = (left, top, left + width, top + height)
    image = image.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)[:, ::-1] if rng.random() < 0.5 else np.asarray(image)


PIPELINES = {"vit_jax": vit_jax, "open_clip": open_clip, "pillow": pillow}


def main() -> None:
    """Measures one pipeline, or all of them."""
    if _PIPELINE.value:
        print(measure(_PIPELINE.value, pathlib.Path(_SHARDS.value), _WORKERS.value))
        return
    cases = [("vit_jax", 1), ("vit_jax", 2), ("pillow", 0)]
    if importlib.util.find_spec("open_clip_train"):
        cases += [("open_clip", 1), ("open_clip", 2)]
    best = dict.fromkeys(cases, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(pathlib.Path(folder))
        for _, case in itertools.product(range(_ROUNDS.value), cases):
            best[case] = max(best[case], apart(folder, *case))
    print("| pipeline | workers | images per second | speed-up of vit_jax with one worker |")
    print("|---|--:|--:|--:|")
    for case, rate in best.items():
        print(f"| {case[0]} | {case[1]} | {rate:.0f} | {best['vit_jax', 1] / rate:.2f} |")


def apart(folder: str, pipeline: str, workers: int) -> float:
    """Images per second, measured in a new process."""
    options = {"pipeline": pipeline, "workers": workers, "shards": folder}
    options |= {"scale": _SCALE.value, "batches": _BATCHES.value}
    command = [sys.executable, __file__, *(f"--{k}={v}" for k, v in options.items())]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(run.stdout.split()[-1])


def measure(pipeline: str, folder: pathlib.Path, workers: int) -> float:
    """Images per second of a pipeline."""
    batches = PIPELINES[pipeline](folder, workers)
    next(batches)
    start = time.perf_counter()
    for _ in range(_BATCHES.value):
        next(batches)
    return _BATCHES.value * _BATCH / (time.perf_counter() - start)


def write_shards(folder: pathlib.Path) -> None:
    """Writes shards of random crops of two photos, JPEG quality 90."""
    photos, rng = load_sample_images().images, np.random.default_rng(0)
    for shard in range(_COUNT):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(_PER_SHARD):
                photo = photos[i % 2]
                top, left = (int(rng.integers(n)) for n in np.subtract(photo.shape[:2], (374, 499)))
                stream = io.BytesIO()
                part = photo[top : top + 375, left : left + 500]
                Image.fromarray(part).save(stream, "JPEG", quality=90)
                caption = b"a photo of a temple, or of a flower, number %d" % i
                add_pair(tar, f"{shard:05d}{i:05d}", stream.getvalue(), caption)


if __name__ == "__main__":
    cli.run(main)
