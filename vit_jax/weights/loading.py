"""Loading and saving the parameters of a model in a given format."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flax import traverse_util

from vit_jax.errors import UserError
from vit_jax.paths import StrPath
from vit_jax.weights import mapping
from vit_jax.weights.checks import check, check_complete, check_constants, matches
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.containers.writing import write_tensors
from vit_jax.weights.entry import Entry, Resize
from vit_jax.weights.format import RESIZE_FIELDS, RESIZE_KEY, Format
from vit_jax.weights.transforms import Shape

if TYPE_CHECKING:
    from vit_jax.models.definition import ModelDef, Params


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """The model that a file was saved for.

    Attributes:
        architecture: its architecture, which determines the grids of tables that are resized.
        exact: whether tables have the grids of `architecture`, because the weights describe it. If
            not, a table of another size belongs to the grid of the new model, or to a square one.
    """

    architecture: Any
    exact: bool = False


def load(
    file: TensorFile,
    model: "ModelDef",
    format: Format,
    *,
    source: Source | None = None,
    shardings: Any = None,
    headless: bool = False,
) -> "Params":
    """Loads the parameters of a model.

    All names and shapes are checked before the first tensor is read.

    Args:
        file: opened weight file.
        model: model that the parameters are for.
        format: format of the file.
        source: model that the file was saved for, if its resolution may differ from that of
            `model`. By default a table of another size is assumed to belong to a square grid.
        shardings: tree of shardings like the parameters; None for the default device.
        headless: whether a classification head in the file is left out.

    Raises:
        UserError: the file does not fit the model, or contradicts it; nothing is loaded.
    """
    entries, file, known = _prepare(file, model, format, source, headless=headless)
    _log_unrelated(file, format.unrelated)
    return mapping.load(entries, file, model.shapes(), shardings, known)


def check_fit(
    file: TensorFile, model: "ModelDef", format: Format, *, source: Source | None = None
) -> None:
    """Checks, without reading tensors, that a file fits a model.

    Args:
        file: opened weight file.
        model: model that the parameters are for.
        format: format of the file.
        source: model that the file was saved for, see `load`.

    Raises:
        UserError: lists all tensors that are missing, unexpected or of another shape.
    """
    entries, file, known = _prepare(file, model, format, source)
    check(entries, file, _shapes(model), known)


def _shapes(model: "ModelDef") -> dict[str, Shape]:
    flat = traverse_util.flatten_dict(model.shapes(), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def count_classes(file: TensorFile, architecture: Any, format: Format) -> int:
    """Returns the number of outputs of the classification head in a file; 0 without a head.

    Args:
        file: opened weight file.
        architecture: architecture of the file with a head of any size.
        format: format of the file.
    """
    entries = format.entries(architecture)
    file = format.view(file, architecture)
    keys = [entry.keys[0] for entry in entries if entry.paths == ("head/bias",)]
    return file.shape(keys[0])[0] if keys and keys[0] in file else 0


def save(params: "Params", model: "ModelDef", path: StrPath, format: Format) -> None:
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
    if pathlib.PurePath(path).suffix != f".{format.container}":
        # Other libraries choose how to read a file by its suffix.
        raise UserError(f"{path}: expected a name ending in .{format.container} for {format.name}")
    entries = format.entries(model.architecture)
    flat = traverse_util.flatten_dict(params, sep="/")
    check_complete(entries, {key: value.shape for key, value in flat.items()})
    tensors = mapping.export(entries, params) | format.constants(model.architecture)
    tower = getattr(model.architecture, "image", model.architecture)
    rule, metadata = getattr(tower, RESIZE_KEY, ""), dict(format.metadata)
    if rule != (usual := format.resize_rule(model.architecture)):
        metadata[RESIZE_KEY] = rule
        logger.info("%s: positions are resized by the rule %s; %s uses %s",
                    path, rule, format.name, usual)  # fmt: skip
    write_tensors(path, format.written(tensors), format.container, metadata, root=format.root)


def _prepare(
    file: TensorFile,
    model: "ModelDef",
    format: Format,
    source: Source | None,
    *,
    headless: bool = False,
) -> tuple[list[Entry], TensorFile, tuple[str, ...]]:
    """The mapping, the file under its names, and patterns of names that are not parameters."""
    _check_settings(file, model.architecture, format)
    if source is None:
        source = Source(format.settle(model.architecture, file))
    resizes = {entry.paths: entry.resize for entry in format.entries(source.architecture)}
    entries = [
        _resized_from(entry, resizes.get(entry.paths))
        for entry in format.entries(model.architecture)
    ]
    file = format.view(file, model.architecture)
    constants = format.constants(source.architecture)
    check_constants(file, constants, format.ignored)
    known = (*format.ignored, *format.unrelated, *constants)
    if headless:
        known = (*known, *format.heads)
        if any(matches(key, format.heads) for key in file):
            logger.info("%s: its classification head is left out", file)
    if source.exact:
        _check_exact(file, model, format, source, known)
    return entries, file, known


def _log_unrelated(file: TensorFile, patterns: Sequence[str]) -> None:
    """States the number and the size of the tensors of another model, which stay unread."""
    left = [file.tensor(key) for key in file if matches(key, patterns)]
    if left:
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in left)
        logger.info("%s: %d tensors of another model (%s) are left out: %s bytes",
                    file, len(left), ", ".join(patterns), f"{size:,}")  # fmt: skip


def _check_exact(
    file: TensorFile, model: "ModelDef", format: Format, source: Source, known: Sequence[str]
) -> None:
    """Refuses a file whose tensors do not have the shapes of the architecture that it describes."""
    same = source.architecture == model.architecture
    own = model if same else type(model)(source.architecture, **model.execution)
    entries = [dataclasses.replace(e, resize=None) for e in format.entries(source.architecture)]
    check(entries, file, _shapes(own), known)


def _check_settings(file: TensorFile, architecture: Any, format: Format) -> None:
    """Refuses a model that contradicts settings of the file."""
    stated = format.settle(architecture, file)
    for path, found, expected in differing_fields(architecture, stated):
        if path.rpartition(".")[2] not in RESIZE_FIELDS:
            raise UserError(f"{file}: the file states {path}={expected!r}; the model has {found!r}")


def differing_fields(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields path and both values of each field in which two architectures differ.

    Args:
        one: config dataclass of an architecture.
        other: another instance of the same class.
        path: prefix of the paths.
    """
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(left) and type(left) is type(right):
            yield from differing_fields(left, right, f"{path}{field.name}.")
        elif left != right:
            yield f"{path}{field.name}", left, right


def _resized_from(entry: Entry, source: Resize | None) -> Entry:
    if entry.resize is None or source is None:
        return entry
    return dataclasses.replace(entry, resize=entry.resize.resized_from(source))
