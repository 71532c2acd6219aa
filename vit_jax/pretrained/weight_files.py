"""Weight files of any known format: the library's own and those of the registered architectures.

params = load_weights("ViT-B-32.pt", model)         # format recognised from the tensor names
save_weights(params, model, "clip.safetensors", "openai_clip")
"""

import dataclasses
import logging
from typing import Any

import jax

from vit_jax.compilation_cache import options_to_run_once
from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.paths import StrPath
from vit_jax.pretrained.native import Native
from vit_jax.weights import loading
from vit_jax.weights.containers.reading import open_weights, read_json
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.loading import Source
from vit_jax.weights.recognition import (
    choose_format,
    find_format,
    format_names,
    formats_named,
    recognise,
)
from vit_jax.weights.unwrapping import unwrap

logger = logging.getLogger(__name__)


def known_formats(architecture: Any = None) -> tuple[Format, ...]:
    """Returns all known formats.

    Args:
        architecture: architecture whose own formats are added, see `registry.weight_formats`.
    """
    return (Native(), *registry.weight_formats(architecture))


def known_format_names() -> list[str]:
    """Returns the names of all known formats, as `--to` and `format=` accept them."""
    return format_names(known_formats())


def open_known(
    path: StrPath, architecture: Any = None, format: str | None = None
) -> tuple[TensorFile, Format]:
    """Opens a weight file and recognises its format.

    Args:
        path: weight file, see `open_weights`.
        architecture: architecture of the model of the file; None if it is unknown.
        format: name of the format; None recognises it from the tensor names.

    Returns:
        The tensors under the names of the format, and the format.

    Raises:
        UserError: the file cannot be read or contains several models; or its format is unknown or
            ambiguous, or cannot hold the architecture.
    """
    formats = known_formats(architecture)
    named = formats if format is None else tuple(formats_named(format, formats))
    file = unwrap(open_weights(path), named)
    if architecture is not None:
        return file, choose_format(file, architecture, formats, format)
    return file, named[0] if len(named) == 1 else recognise(file, named)


def load_weights(
    path: StrPath,
    model: ModelDef,
    format: str | None = None,
    *,
    source: Source | None = None,
    shardings: Any = None,
    headless: bool = False,
) -> Params:
    """Loads the parameters of a model from a file.

    All names and shapes are checked before the first tensor is read.

    Args:
        path: weight file, see `open_weights`.
        model: model that the parameters are for.
        format: name of the format; None recognises it from the tensor names.
        source: architecture that the file was saved for, if its resolution may differ from that of
            the model.
        shardings: tree of shardings like the parameters; None for the default device.
        headless: whether a classification head in the file is left out.

    Raises:
        UserError: the file cannot be read, its format is unknown or ambiguous, or it does not fit
            the model. Nothing is loaded.
    """
    file, known = open_known(path, model.architecture, format)
    return loading.load(file, model, known, source=source, shardings=shardings, headless=headless)


def load_pretrained(
    path: StrPath,
    model: ModelDef,
    source: Source,
    *,
    format: str | None = None,
    seed: int = 0,
    shardings: Any = None,
) -> Params:
    """Loads the parameters of a model, which may have another number of classes than the file.

    Args:
        path: weight file, see `open_weights`.
        model: model that the parameters are for.
        source: model that the file was saved for.
        format: name of the format; None recognises it from the tensor names.
        seed: PRNG seed for a fresh head.
        shardings: tree of shardings like the parameters; None for the default device.

    Raises:
        UserError: as `load_weights`.
    """
    wanted = getattr(model.architecture, "num_classes", None)
    same = wanted == getattr(source.architecture, "num_classes", 0)
    if wanted is None or (wanted and same):
        return load_weights(path, model, format, source=source, shardings=shardings)
    changes: dict[str, Any] = {"num_classes": 0}
    if hasattr(model.architecture, "head_norm"):
        changes["head_norm"] = False
    body = ModelDef(dataclasses.replace(model.architecture, **changes), **model.execution)
    source = dataclasses.replace(
        source, architecture=dataclasses.replace(source.architecture, **changes)
    )
    params = load_weights(path, body, format, source=source, shardings=shardings, headless=True)
    heads = [name for name in model.shapes() if name not in params]
    if not heads:
        return params
    logger.info("%s: %s of %d classes initialised anew", path, ", ".join(heads), wanted)
    places = None if shardings is None else {name: shardings[name] for name in heads}

    def fresh(key: jax.Array) -> Params:
        params = model.init(key)
        return {name: params[name] for name in heads}

    init = jax.jit(fresh, out_shardings=places, compiler_options=options_to_run_once())
    return {**params, **init(jax.random.key(seed))}


def check_weights(
    path: StrPath,
    model: ModelDef,
    format: str | None = None,
    *,
    source: Source | None = None,
) -> None:
    """Checks, without reading tensors, that a file fits a model.

    Args:
        path: weight file, see `open_weights`.
        model: model that the parameters are for.
        format: name of the format; None recognises it from the tensor names.
        source: architecture that the file was saved for, see `load_weights`.

    Raises:
        UserError: as `load_weights`.
    """
    file, known = open_known(path, model.architecture, format)
    loading.check_fit(file, model, known, source=source)


def save_weights(params: Params, model: ModelDef, path: StrPath, format: str) -> None:
    """Writes parameters under the names of another library, atomically.

    Args:
        params: parameters of `model`.
        model: model that the parameters belong to.
        path: path of the new file, with the suffix of the format; an existing file is replaced.
        format: name of the format.

    Raises:
        UserError: unknown format, a format that cannot hold the model, or another suffix.
    """
    known = find_format(format, model.architecture, known_formats(model.architecture))
    loading.save(params, model, path, known)


def read_architecture(path: StrPath, format: str | None = None) -> Any:
    """Returns the architecture of a file, from the description beside it and from its shapes.

    Args:
        path: weight file, see `open_weights`.
        format: name of the format; None recognises it from the tensor names.

    Raises:
        UserError: the architecture cannot be determined, or is not available here.
    """
    file, known = open_known(path, format=format)
    found = known.architecture(file, read_description(file, known))
    if found is None:
        raise undescribed(file, known)
    return known.settle(found, file)


def read_description(file: TensorFile, known: Format) -> dict[str, Any] | None:
    """Reads the JSON file beside weights that describes their architecture.

    Args:
        file: opened weight file.
        known: its format, which determines the name of the description.

    Returns:
        Its content; None if there is no such file.
    """
    path = file.path.with_name(known.description)
    return read_json(path) if path.is_file() else None


def undescribed(file: TensorFile, known: Format) -> UserError:
    """Returns the error about weights whose architecture is unknown.

    Args:
        file: opened weight file.
        known: its format.
    """
    path = file.path.with_name(known.description)
    beside = "" if path.is_file() else f" and there is no {path.name} beside them"
    return UserError(
        f"{file}: weights of the format {known.name} do not describe their architecture{beside}; "
        "name the model"
    )
