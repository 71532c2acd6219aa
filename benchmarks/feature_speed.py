"""Image embeddings from files: images per second, compared with open_clip's evaluation loop.

    python -m benchmarks.feature_speed [--model vit_b16] [--images 512] [--rounds 3]

Both libraries embed the same JPEG files with CLIP's ViT, each in a process of its own and in turn:
vit_jax as its evaluators do, open_clip with a DataLoader of two workers. Weights are random. The
first batch, with compilation, is not timed. `--only_files` leaves the model out and times reading
alone. Needs the extra [parity].
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from vit_jax import cli

_MODELS = {"vit_b32": "ViT-B-32", "vit_b16": "ViT-B-16"}

_MODEL = flags.DEFINE_enum("model", "vit_b32", sorted(_MODELS), "CLIP's image encoder.")
_IMAGES = flags.DEFINE_integer("images", 512, "Number of images.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images per batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Runs of each library.", lower_bound=1)
_ONLY_FILES = flags.DEFINE_bool("only_files", False, "Read files without running the model.")
_RUN = flags.DEFINE_enum("run", None, ["vit_jax", "open_clip"], "Time one library.")
_FOLDER = flags.DEFINE_string("folder", None, "Folder of the images, for --run.")


def write_images(folder: pathlib.Path, count: int) -> None:
    """Writes JPEG files of about 500 x 375 px and 60 kB, as ImageNet's.

    Args:
        folder: existing folder; the files lie in the sub-folder of one class.
        count: number of files.
    """
    rng = np.random.default_rng(0)
    (folder / "class").mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(folder / "class" / f"{i}.jpg", quality=92)


def time_vit_jax(folder: str) -> float:
    """Returns the seconds in which the evaluators embed the images of a folder."""
    import vit_jax
    from vit_jax.data.sources import open_source
    from vit_jax.evaluators.embedding import Embedder, embed_images
    from vit_jax.parallel.mesh import make_mesh

    model = vit_jax.create_model(f"clip_{_MODEL.value}")
    embedder = Embedder(
        model.definition, inputs=model.spec.inputs, mesh=make_mesh(), batch_size=_BATCH.value
    )
    source = open_source(f"folder:{folder}")
    # With the mean of the pixels alone reading, resizing and the transfer remain.
    function = _mean_color if _ONLY_FILES.value else embed_images
    embedder.apply("images", function, model.params, [source[0]])
    start = time.perf_counter()
    embedder.apply("images", function, model.params, source)
    return time.perf_counter() - start


def _mean_color(model: Any, images: Any) -> Any:
    del model
    return images.mean(axis=(1, 2))


def time_open_clip(folder: str) -> float:
    """Returns the seconds in which open_clip embeds the images of a folder."""
    import open_clip
    import torch
    from torchvision.datasets import ImageFolder

    model, _, preprocess = open_clip.create_model_and_transforms(_MODELS[_MODEL.value])
    model.eval()
    loader = torch.utils.data.DataLoader(
        ImageFolder(folder, preprocess), batch_size=_BATCH.value, num_workers=2
    )
    with torch.inference_mode():
        model.encode_image(torch.zeros(_BATCH.value, 3, 224, 224), normalize=True)
        start = time.perf_counter()
        for images, _ in loader:
            if not _ONLY_FILES.value:
                model.encode_image(images, normalize=True)
    return time.perf_counter() - start


def run(library: str, folder: str) -> float:
    """Times a library in a process of its own, and returns images per second."""
    command = [sys.executable, "-m", "benchmarks.feature_speed", f"--run={library}"]
    command += [f"--folder={folder}", f"--model={_MODEL.value}", f"--batch_size={_BATCH.value}"]
    command += [f"--only_files={_ONLY_FILES.value}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return _IMAGES.value / json.loads(done.stdout.splitlines()[-1])["seconds"]


def main() -> None:
    """Prints the rate of each library per round, and the ratio of their medians."""
    if _RUN.value:
        if _FOLDER.value is None:
            raise cli.UserError("--run needs --folder")
        timed = time_vit_jax if _RUN.value == "vit_jax" else time_open_clip
        print(json.dumps({"seconds": timed(_FOLDER.value)}))
        return
    rates: dict[str, list[float]] = {"vit_jax": [], "open_clip": []}
    with tempfile.TemporaryDirectory() as folder:
        write_images(pathlib.Path(folder), _IMAGES.value)
        for _ in range(_ROUNDS.value):
            for library, values in rates.items():
                values.append(run(library, folder))
    print(f"{_MODEL.value}, {_IMAGES.value} JPEG files, {os.cpu_count()} cores; images per second:")
    for library, values in rates.items():
        print(f"{library:<10}", *(f"{value:8.1f}" for value in values))
    ours, theirs = (statistics.median(values) for values in rates.values())
    print(f"ratio of the medians: {ours / theirs:.2f}")


if __name__ == "__main__":
    cli.run(main)
