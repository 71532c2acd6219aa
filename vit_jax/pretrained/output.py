"""Weights that a command writes: the check before its work, and the file after it."""

import dataclasses
from typing import TYPE_CHECKING

from flax.traverse_util import flatten_dict

from vit_jax.errors import UserError, check_name
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.paths import as_path
from vit_jax.pretrained import native
from vit_jax.pretrained.weight_files import known_format_names, save_weights

if TYPE_CHECKING:
    from etils import epath


def check_output(output: str, format: str, *, overwrite: bool) -> "epath.Path":
    """Returns the file that weights are written to, if it may be written.

    Args:
        output: file, or a folder for the library's own format.
        format: name of the format.
        overwrite: whether an existing file is replaced.

    Raises:
        UserError: an unknown format, or a file that exists.
    """
    check_name(format, known_format_names(), "format")
    own = format == native.NAME
    path = native.tensor_path(output) if own else as_path(output)
    for file in (path, path.with_suffix(".json")) if own else (path,):
        if file.exists() and not overwrite:
            raise UserError(f"{file} exists; --overwrite replaces it")
    return path


def image_tower(
    model: ModelDef, params: Params, spec: ModelSpec | None
) -> tuple[ModelDef, Params, ModelSpec | None]:
    """Takes the image tower out of a model, as the backbone of self-distillation.

    Everything around it is left out: heads, decoders, text towers and projections.

    Args:
        model: a model with an image tower.
        params: its parameters.
        spec: architecture, image preprocessing and tokenizer; None if they are unknown.

    Returns:
        The same for the tower.

    Raises:
        UserError: there is no image tower, or one that is no model without the others.
    """
    architecture = getattr(model.architecture, "image", None)
    name = type(model.architecture).__name__
    if not hasattr(architecture, "make"):
        raise UserError(f"expected a model around an image tower, as DINOConfig; found {name}")
    tower = ModelDef(architecture, **model.execution)
    expected, found = flatten_dict(tower.shapes(), sep="/"), flatten_dict(params["image"], sep="/")
    if own := sorted(found.keys() - expected.keys()):
        raise UserError(
            f"the image tower of {name} is no {type(architecture).__name__} by itself: it has "
            f"{', '.join(own)}"
        )
    if spec is not None:
        spec = dataclasses.replace(spec, architecture=architecture, tokenizer=None)
    return tower, params["image"], spec


def write_output(
    path: "epath.Path", format: str, params: Params, model: ModelDef, spec: ModelSpec | None
) -> None:
    """Writes weights atomically, and prints the name and the size of the file.

    Args:
        path: result of `check_output`.
        format: name of the format.
        params: parameters of the model.
        model: model of the parameters.
        spec: architecture, image preprocessing and tokenizer; None if they are unknown.

    Raises:
        UserError: the format cannot hold the model, or needs the image preprocessing.
    """
    if format != native.NAME:
        save_weights(params, model, path, format)
    elif spec is None:
        raise UserError(
            f"--to {native.NAME} also saves the image preprocessing, which is unknown: name the "
            "model with --model"
        )
    else:
        native.save(path, params, spec)
    print(f"{path}: {format}, {path.stat().length:,} bytes")
