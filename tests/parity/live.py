"""Comparison with the original libraries at published sizes, in both directions."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.weights.reference import relative_error
from vit_jax.models.definition import ModelDef
from vit_jax.pretrained.weight_files import known_formats, load_weights, save_weights
from vit_jax.weights.containers.tensors import LazyTensor, TensorFile
from vit_jax.weights.loading import check_fit
from vit_jax.weights.recognition import choose_format

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
    """Checks that weights give the same outputs here, and again in the original library.

    Args:
        theirs: model of the original library with random weights, which are overwritten.
        forward: (inputs as tensors) -> outputs of the original library by name.
        model: model of this library.
        ours: (bound module, inputs) -> outputs of this library by the same names.
        inputs: inputs of both: images (B, H, W, 3), tokens or noise.
        format: name of the format.
        folder: folder for the files.
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
    """Compares all outputs; the largest error is printed (pytest -rP)."""
    assert found.keys() == expected.keys()
    errors = {key: relative_error(np.asarray(found[key]), expected[key]) for key in expected}
    print(f"{name}: largest relative error {max(errors.values()):.1e}")
    assert max(errors.values()) < TOLERANCE, errors


def check_names(theirs: torch.nn.Module, model: ModelDef, format: str) -> None:
    """Checks that the names and shapes of a state dict are those of the format, without values.

    Args:
        theirs: model of the original library, possibly on the device "meta".
        model: model of this library.
        format: name of the format.
    """
    state = {key: np.broadcast_to(np.float32(0), x.shape) for key, x in theirs.state_dict().items()}
    tensors = {key: LazyTensor(x.shape, x.dtype, lambda x=x: x) for key, x in state.items()}
    file = TensorFile(pathlib.Path(format), tensors)
    known = choose_format(file, model.architecture, known_formats())
    assert known.name == format
    check_fit(file, model, known)
    written = {
        key for e in known.entries(model.architecture) for _, keys in e.groups() for key in keys
    }
    assert written | set(known.constants(model.architecture)) == set(state)


def random_images(*shape: int) -> np.ndarray:
    """Returns noise in the shape of images (B, H, W, 3)."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
