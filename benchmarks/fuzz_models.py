"""Mutated weight files and config overrides, opened as `create_model` and `train` open them."""

import collections
import dataclasses
import functools
import io
import json
import pathlib
import pickle
import random
import struct
import tempfile
import zipfile
from typing import Any, ClassVar

import jax
import numpy as np
from safetensors.numpy import load

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
    found["state.pth"] = _torch_file(found["timm.safetensors"])
    return found


class _Storage:
    """Stands for a storage of torch, which the pickle names by key."""

    def __init__(self, key: str, count: int):
        self.key, self.count = key, count


class _FloatStorage:
    """Has the name of torch's class in the pickle."""


def _rebuild(*args: Any) -> None:
    """Has the name of torch's function in the pickle."""


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the C one cannot rename globals
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", _FloatStorage, obj.key, "cpu", obj.count)
        return None

    def save_global(self, obj: Any, name: str | None = None) -> None:
        names = {
            _FloatStorage: b"ctorch\nFloatStorage\n",
            _rebuild: b"ctorch._utils\n_rebuild_tensor_v2\n",
        }
        if obj in names:
            self.write(names[obj])
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch: ClassVar[dict[type, Any]] = {
        **pickle._Pickler.dispatch,  # type: ignore[attr-defined]
        type(_rebuild): save_global,
        type: save_global,
    }


class _Tensor:
    """An array that is pickled like a tensor."""

    def __init__(self, key: str, array: np.ndarray):
        self.key, self.array = key, array

    def __reduce__(self) -> Any:
        strides = tuple(step // 4 for step in self.array.strides)
        storage = _Storage(self.key, self.array.size)
        return _rebuild, (storage, 0, self.array.shape, strides, False, {})


def _torch_file(safetensors: bytes) -> bytes:
    """The zip file that `torch.save` writes, with the tensors of a safetensors file."""
    arrays = {k: np.ascontiguousarray(v) for k, v in load(safetensors).items()}
    stream, target = io.BytesIO(), io.BytesIO()
    tensors = {k: _Tensor(str(i), v) for i, (k, v) in enumerate(arrays.items())}
    _Pickler(stream, protocol=2).dump({"state_dict": tensors, "epoch": 3, "args": {"lr": 0.1}})
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", "little")
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{i}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return target.getvalue()


def _mutate_file(data: bytes, name: str, rng: random.Random) -> bytes:
    """Changes the whole file, or the header that describes it."""
    if name.endswith("safetensors") and rng.random() < 0.5:
        (size,) = struct.unpack("<Q", data[:8])
        header = mutate(data[8 : 8 + size], rng)
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    if name.endswith(("npz", "pth")) and rng.random() < 0.5:
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
    paths, overrides = _paths(config), []
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


def _paths(block: Any, prefix: str = "") -> list[str]:
    """Dotted paths of all keys of a config."""
    paths = []
    for key in block:
        value = block[key]
        nested = hasattr(value, "keys")
        paths += _paths(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return paths


SUBJECTS = {"weights": fuzz_weights, "native": fuzz_native, "overrides": fuzz_overrides}
