"""Loading and saving the parameters of a model in a given format."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from flax import traverse_util

from vit_jax.errors import UserError
from vit_jax.weights import mapping
from vit_jax.weights.checks import check, check_complete, check_constants
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.containers.writing import write_tensors
from vit_jax.weights.entry import Entry, Resize
from vit_jax.weights.format import Format

if TYPE_CHECKING:
    from vit_jax.models.definition import ModelDef, Params


def load(
    file: TensorFile,
    model: "ModelDef",
    format: Format,
    *,
    source: Any = None,
    shardings: Any = None,
) -> "Params":
    """Loads the parameters of a model.

    All names and shapes are checked before the first tensor is read.

    Args:
        file: opened weight file.
        model: model that the parameters are for.
        format: format of the file.
        source: architecture that the file was saved for, if its resolution may differ from that of
            the model. It determines the shape of grids whose tables are resized. By default a
            table of another size is assumed to belong to a square grid.
        shardings: tree of shardings like the parameters; None for the default device.

    Raises:
        UserError: the file does not fit the model; nothing is loaded.
    """
    entries, file, known = _prepare(file, model, format, source)
    return mapping.load(entries, file, model.shapes(), shardings, known)


def check_fit(file: TensorFile, model: "ModelDef", format: Format, *, source: Any = None) -> None:
    """Checks, without reading tensors, that a file fits a model.

    Args:
        file: opened weight file.
        model: model that the parameters are for.
        format: format of the file.
        source: architecture that the file was saved for, see `load`.

    Raises:
        UserError: lists all tensors that are missing, unexpected or of another shape.
    """
    entries, file, known = _prepare(file, model, format, source)
    flat = traverse_util.flatten_dict(model.shapes(), sep="/")
    check(entries, file, {path: tuple(leaf.shape) for path, leaf in flat.items()}, known)


def count_classes(file: TensorFile, model: "ModelDef", format: Format) -> int:
    """Returns the number of outputs of the classification head in a file; 0 without a head.

    Args:
        file: opened weight file.
        model: model of the file with a head of any size.
        format: format of the file.
    """
    entries = format.entries(model.architecture)
    file = format.view(file, model.architecture)
    keys = [entry.keys[0] for entry in entries if entry.paths == ("head/bias",)]
    return file.shape(keys[0])[0] if keys and keys[0] in file else 0


def save(params: "Params", model: "ModelDef", path: str | pathlib.Path, format: Format) -> None:
    """Writes parameters under the names of another library, atomically.

    Args:
        params: parameters of `model`.
        model: model that the parameters belong to.
        path: path of the new file, with the suffix of `format.container`; an existing file is
            replaced.
        format: format to write.

    Raises:
        UserError: the format cannot hold the model, or the path has another suffix.
    """
    if pathlib.Path(path).suffix != f".{format.container}":
        # Other libraries choose how to read a file by its suffix.
        raise UserError(f"{path}: expected a name ending in .{format.container} for {format.name}")
    entries = format.entries(model.architecture)
    flat = traverse_util.flatten_dict(params, sep="/")
    check_complete(entries, {key: value.shape for key, value in flat.items()})
    tensors = mapping.export(entries, params) | format.constants(model.architecture)
    write_tensors(path, tensors, format.container, format.metadata)


def _prepare(
    file: TensorFile, model: "ModelDef", format: Format, source: Any
) -> tuple[list[Entry], TensorFile, tuple[str, ...]]:
    """The mapping, the file under its names, and patterns of names that are not parameters."""
    entries = format.entries(model.architecture)
    if source is not None:
        resizes = {entry.paths: entry.resize for entry in format.entries(source)}
        entries = [_resized_from(entry, resizes.get(entry.paths)) for entry in entries]
    file = format.view(file, model.architecture)
    constants = format.constants(model.architecture if source is None else source)
    check_constants(file, constants, format.ignored)
    return entries, file, (*format.ignored, *constants)


def _resized_from(entry: Entry, source: Resize | None) -> Entry:
    if entry.resize is None or source is None:
        return entry
    return dataclasses.replace(entry, resize=entry.resize.resized_from(source))
