"""The original libraries at published sizes: weights there and back, outputs beside ours."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from vit_jax.weights.formats import FORMATS, recognise

from tests.weights.reference import relative_error
from vit_jax.models.definition import ModelDef
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights import checks as mismatch
from vit_jax.weights.containers.tensors import LazyTensor, TensorFile
from vit_jax.weights.mapping import flatten

TOLERANCE = 1e-4
Outputs = Mapping[str, Any]


def compare(
    theirs: torch.nn.Module,
    forward: Callable[..., Mapping[str, torch.Tensor]],
    model: ModelDef,
    ours: Callable[..., Outputs],
    inputs: tuple[np.ndarray, ...],
    format: str,
    folder: pathlib.Path,
) -> None:
    """Same weights in, same outputs out, in both directions.

    Args:
        theirs: with random weights; they are erased on the way.
        forward: (inputs, as tensors) -> their outputs.
        model: ours.
        ours: (bound module, inputs) -> our outputs, of the same names.
        inputs: images channels last, tokens, noise.
        format: a key of `formats.FORMATS`, which must also be the one that is recognised.
        folder: for the files.
    """
    theirs.eval()
    tensors = [torch.from_numpy(x) for x in inputs]
    with torch.no_grad():
        expected = {name: x.numpy().copy() for name, x in forward(*tensors).items()}
    state = theirs.state_dict()
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "in.safetensors")

    params = load_weights(folder / "in.safetensors", model)
    found = jax.jit(lambda params, *x: ours(model.bind(params), *x))(params, *inputs)
    check("in", found, expected)

    save_weights(params, model, folder / "out.safetensors", format)
    with torch.no_grad():
        for value in state.values():
            value.zero_()
        theirs.load_state_dict(load_file(folder / "out.safetensors"), strict=True)
        check("out", forward(*tensors), expected)


def check(name: str, found: Outputs, expected: Outputs) -> None:
    """Every output within the tolerance; the largest error is printed (pytest -rP)."""
    assert found.keys() == expected.keys()
    errors = {key: relative_error(np.asarray(found[key]), expected[key]) for key in expected}
    print(f"{name}: largest relative error {max(errors.values()):.1e}")
    assert max(errors.values()) < TOLERANCE, errors


def check_names(theirs: torch.nn.Module, model: ModelDef, format: str) -> None:
    """Their state dict has the names and shapes that we read, and all that we would write."""
    chosen = FORMATS[format]
    entries = chosen.checked_entries(model.family, model.architecture)
    constants = chosen.constants(model.family, model.architecture)
    state = {key: np.broadcast_to(np.float32(0), x.shape) for key, x in theirs.state_dict().items()}
    tensors = {key: LazyTensor(x.shape, x.dtype, lambda x=x: x) for key, x in state.items()}
    file = TensorFile(pathlib.Path(format), tensors)
    assert recognise(file).name == format
    shapes = {path: leaf.shape for path, leaf in flatten(model.shapes()).items()}
    mismatch.check(entries, file, shapes, (*chosen.ignored, *constants))
    written = {key for entry in entries for _, keys in entry.groups() for key in keys}
    assert written | set(constants) == set(state)


def random_images(*shape: int) -> np.ndarray:
    """Noise, channels last."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
