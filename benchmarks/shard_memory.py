"""Memory of reading LLaVA's vision side from a sharded checkpoint with a language model.

    python -m benchmarks.shard_memory [--container safetensors] [--layers 8] [--shards 4]

Writes a checkpoint of random values in float16 into a temporary folder, with the published names
and shapes of LLaVA 1.5 7B and the first layers of its language model: 4.4 GB with eight of them.
Opens it with `create_model`, and prints one JSON object: bytes of the checkpoint and of the
parameters, the growth of the resident memory at its peak, and its ratio to the parameters. With
`--container torch` the shards are written by torch.
"""

import json
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags

from vit_jax import cli

_CONTAINER = flags.DEFINE_enum("container", "safetensors", ["safetensors", "torch"], "File type.")
_LAYERS = flags.DEFINE_integer("layers", 8, "Layers of the language model.", lower_bound=0)
_SHARDS = flags.DEFINE_integer("shards", 4, "Files.", lower_bound=1)
MODEL = "llava_1_5_7b"
VOCABULARY, WIDTH, HIDDEN = 32064, 4096, 11008
NAMES = {
    "safetensors": ("model-{:05d}-of-{:05d}.safetensors", "model.safetensors.index.json"),
    "torch": ("pytorch_model-{:05d}-of-{:05d}.bin", "pytorch_model.bin.index.json"),
}


def main() -> None:
    """Writes the checkpoint in another process, reads it in this one and prints the result."""
    with tempfile.TemporaryDirectory() as folder:
        given = (folder, _CONTAINER.value, _LAYERS.value, _SHARDS.value)
        writer = multiprocessing.get_context("spawn").Process(target=write, args=given)
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit(writer.exitcode)
        size = sum(path.stat().st_size for path in pathlib.Path(folder).iterdir())
        print(json.dumps({"container": _CONTAINER.value, "file_bytes": size, **measure(folder)}))


def measure(folder: str) -> dict[str, float]:
    """Opens a checkpoint.

    Args:
        folder: folder with the index.

    Returns:
        Bytes of the parameters, largest growth of the resident memory in bytes, their ratio, and
        seconds.
    """
    from vit_jax import create_model

    jax.block_until_ready(jax.device_put(np.zeros(8)))  # starts the backend
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts at the present
    before, start = resident("VmRSS"), time.monotonic()
    model = create_model(MODEL, weights=folder)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    peak = resident("VmHWM") - before
    return {
        "kept_bytes": kept,
        "peak_bytes": peak,
        "ratio": round(peak / kept, 3),
        "seconds": round(time.monotonic() - start, 1),
    }


def resident(field: str) -> int:
    """Reads the present (VmRSS) or the largest (VmHWM) resident memory of this process, bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(field)


def write(folder: str, container: str, layers: int, shards: int) -> None:
    """Writes a checkpoint whose shards contain tensors of both models.

    Args:
        folder: destination.
        container: "safetensors" or "torch".
        layers: number of layers of the language model.
        shards: number of files.
    """
    shapes = dict(sorted({**vision_shapes(), **dict(language_shapes(layers))}.items()))
    pattern, index = NAMES[container]
    noise = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float16)
    places: dict[str, str] = {}
    for i in range(shards):
        name = pattern.format(i + 1, shards)
        keys = list(shapes)[i::shards]
        tensors = {key: np.resize(noise, shapes[key]) for key in keys}
        write_shard(pathlib.Path(folder) / name, tensors, container)
        places |= dict.fromkeys(keys, name)
    (pathlib.Path(folder) / index).write_text(json.dumps({"weight_map": places}))


def write_shard(path: pathlib.Path, tensors: dict[str, np.ndarray], container: str) -> None:
    """Writes one file."""
    if container == "torch":
        import torch

        torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, path)
    else:
        from vit_jax.weights.containers.writing import write_tensors

        write_tensors(path, tensors)


def vision_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tower and the projector."""
    from flax import traverse_util

    from vit_jax.models.definition import ModelDef
    from vit_jax.models.llava.weights import TransformersLlava
    from vit_jax.models.registry import model_spec

    architecture = model_spec(MODEL).architecture
    flat = traverse_util.flatten_dict(ModelDef(architecture).shapes(), sep="/")
    shapes = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    found: dict[str, tuple[int, ...]] = {}
    for entry in TransformersLlava().entries(architecture):
        for _, keys in entry.groups():
            found |= dict(zip(keys, entry.tensor_shapes(shapes), strict=True))
    return found


def language_shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a LLaMA of 7B (Touvron et al. 2023, table 2)."""
    yield "language_model.model.embed_tokens.weight", (VOCABULARY, WIDTH)
    yield "language_model.lm_head.weight", (VOCABULARY, WIDTH)
    yield "language_model.model.norm.weight", (WIDTH,)
    for i in range(layers):
        prefix = f"language_model.model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            yield f"{prefix}self_attn.{name}_proj.weight", (WIDTH, WIDTH)
        for name in ("gate", "up"):
            yield f"{prefix}mlp.{name}_proj.weight", (HIDDEN, WIDTH)
        yield f"{prefix}mlp.down_proj.weight", (WIDTH, HIDDEN)
        for name in ("input", "post_attention"):
            yield f"{prefix}{name}_layernorm.weight", (WIDTH,)


if __name__ == "__main__":
    cli.run(main)
