"""Mutated weight files and config overrides, opened as `create_model` and `train` open them."""

import collections
import dataclasses
import functools
import io
import json
import pathlib
import random
import struct
import tempfile
import zipfile
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from benchmarks.mutation import mutate
from vit_jax import experiment
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained import native
from vit_jax.pretrained.identification import identify
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.recipes import load_recipe

_TINY = ViTConfig(image_size=8, patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=16,
                  num_classes=3)  # fmt: skip
_TORCH = pathlib.Path(__file__).parents[1] / "tests" / "fixtures" / "weights" / "torch_averaged.pt"
_IN_TORCH = ViTConfig(image_size=16, patch_size=4, width=16, depth=3, num_heads=2, mlp_dim=32,
                      num_classes=5, qk_norm=True)  # fmt: skip
_RECIPES = ("vit_mnist5k", "clip_emoji", "deit_b16", "mae_vit_b16", "siglip_b16", "swin_t")
_VALUES = (
    "1", "0", "-1", "1e-3", "nan", "inf", "1e400", "True", "none", "None", "'", '"', "()", "(1,)",
    "[", "{}", "{'a': 1}", "a b", "99999999999999999999", "adamw", "lion", "optax:adam", "x:y",
    "muon", "contrastive", "classification", "vit_b16", "clip_vit_b32", "swin_t", "bfloat16",
    "digits:train", "tests", "\udcff", "\n", "../x", "0.5", "(192, 256)", "full", "dots",
)  # fmt: skip


@functools.cache
def _model() -> tuple[ModelDef, dict[str, Any]]:
    model = ModelDef(_TINY)
    return model, jax.device_get(jax.jit(model.init)(jax.random.key(0)))


@functools.cache
def _files() -> dict[str, bytes]:
    """Contents of good files of the tiny model, by name."""
    model, params = _model()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        save_weights(params, model, folder / "timm.safetensors", "timm")
        save_weights(params, model, folder / "vit_jax.npz", "vit_jax_npz")
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {_TORCH.name: _TORCH.read_bytes()}


def _mutate_file(data: bytes, name: str, rng: random.Random) -> bytes:
    """Changes the whole file, or the header that describes it."""
    if name.endswith("safetensors") and rng.random() < 0.5:
        (size,) = struct.unpack("<Q", data[:8])
        header = mutate(data[8 : 8 + size], rng)
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    if name.endswith(("npz", "pt")) and rng.random() < 0.5:
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
            members = old.namelist()
            changed = rng.choice([m for m in members if m.endswith(("pkl", "npy"))])
            for member in members:
                content = old.read(member)
                new.writestr(member, mutate(content, rng) if member == changed else content)
        return stream.getvalue()
    return mutate(data, rng)


def fuzz_weights(folder: pathlib.Path, rng: random.Random) -> collections.Counter[str]:
    """Loads a mutated weight file into the tiny model, and identifies it without one."""
    name = rng.choice(sorted(_files()))
    path = folder / name
    path.write_bytes(_mutate_file(_files()[name], name, rng))
    if rng.random() < 0.3:
        stated = json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 3})
        (folder / "config.json").write_bytes(mutate(stated.encode(), rng))
    if rng.random() < 0.5:
        found = identify(str(path))
        load_weights(path, ModelDef(found.source.architecture), source=found.source)
    elif name == _TORCH.name:
        load_weights(f"{path}#state_dict", ModelDef(_IN_TORCH))
    else:
        load_weights(path, _model()[0])
    return collections.Counter(loaded=1)


def fuzz_native(folder: pathlib.Path, rng: random.Random) -> collections.Counter[str]:
    """Loads weights in the library's own format with a mutated description."""
    spec = dataclasses.replace(model_spec("vit_ti16"), architecture=_TINY)
    native.save(folder / "model.safetensors", _model()[1], spec)
    description = folder / "model.json"
    description.write_bytes(mutate(description.read_bytes(), rng))
    native.load(folder / "model.safetensors")
    return collections.Counter(loaded=1)


def fuzz_overrides(folder: pathlib.Path, rng: random.Random) -> collections.Counter[str]:
    """Applies overrides to a recipe and builds what does not read data."""
    recipe = rng.choice(_RECIPES)
    config = load_recipe(recipe)
    paths, overrides = list(flatten_dict(config.to_dict(), sep=".")), []
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice(paths)
        if rng.random() < 0.3:
            key = mutate(key.encode(), rng).decode("utf-8", "replace")
        overrides.append(f"{key}={rng.choice(_VALUES)}" if rng.random() < 0.95 else key)
    config = load_recipe(recipe, overrides)
    run = experiment.build(config, data=False)
    for part in ("spec", "optim", "schedule", "inputs", "model", "optimizer"):
        getattr(run, part)
    return collections.Counter(built=1)


SUBJECTS = {"weights": fuzz_weights, "native": fuzz_native, "overrides": fuzz_overrides}
