"""Weight files of any known format: the library's own and those of the registered architectures.

params = load_weights("ViT-B-32.pt", model)         # format recognised from the tensor names
save_weights(params, model, "clip.safetensors", "openai_clip")
"""

import pathlib
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.pretrained.native import Native
from vit_jax.weights import loading
from vit_jax.weights.containers.reading import open_weights, read_json
from vit_jax.weights.format import Format
from vit_jax.weights.recognition import (
    choose_format,
    find_format,
    format_names,
    formats_named,
    recognise,
)


def known_formats(architecture: Any = None) -> tuple[Format, ...]:
    """Returns all known formats.

    Args:
        architecture: architecture whose own formats are added, see `registry.weight_formats`.
    """
    return (Native(), *registry.weight_formats(architecture))


def known_format_names() -> list[str]:
    """Returns the names of all known formats, as `--to` and `format=` accept them."""
    return format_names(known_formats())


def load_weights(
    path: str | pathlib.Path,
    model: ModelDef,
    format: str | None = None,
    *,
    source: Any = None,
    shardings: Any = None,
) -> Params:
    """Loads the parameters of a model from a file.

    All names and shapes are checked before the first tensor is read.

    Args:
        path: weight file, see `open_weights`.
        model: model that the parameters are for.
        format: name of the format; None recognises it from the tensor names.
        source: architecture that the file was saved for, if its resolution may differ from that of
            the model, see `loading.load`.
        shardings: tree of shardings like the parameters; None for the default device.

    Raises:
        UserError: the file cannot be read, its format is unknown or ambiguous, or it does not fit
            the model. Nothing is loaded.
    """
    file = open_weights(path)
    known = choose_format(file, model.architecture, known_formats(model.architecture), format)
    return loading.load(file, model, known, source=source, shardings=shardings)


def check_weights(path: str | pathlib.Path, model: ModelDef, format: str | None = None) -> None:
    """Checks, without reading tensors, that a file fits a model.

    Args:
        path: weight file, see `open_weights`.
        model: model that the parameters are for.
        format: name of the format; None recognises it from the tensor names.

    Raises:
        UserError: as `load_weights`.
    """
    file = open_weights(path)
    known = choose_format(file, model.architecture, known_formats(model.architecture), format)
    loading.check_fit(file, model, known)


def count_classes(path: str | pathlib.Path, model: ModelDef, format: str | None = None) -> int:
    """Returns the number of outputs of the classification head in a file; 0 without a head.

    Args:
        path: weight file, see `open_weights`.
        model: model of the file with a head of any size.
        format: name of the format; None recognises it from the tensor names.
    """
    file = open_weights(path)
    known = choose_format(file, model.architecture, known_formats(model.architecture), format)
    return loading.count_classes(file, model, known)


def save_weights(params: Params, model: ModelDef, path: str | pathlib.Path, format: str) -> None:
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


def read_architecture(path: str | pathlib.Path, format: str | None = None) -> Any:
    """Returns the architecture of a file, from a `config.json` beside it and from its shapes.

    Args:
        path: weight file, see `open_weights`.
        format: name of the format; None recognises it from the tensor names.

    Raises:
        UserError: the architecture cannot be determined, or is not available here.
    """
    file = open_weights(path)
    formats = known_formats()
    if format is not None:
        formats = tuple(formats_named(format, formats))
    known = formats[0] if len(formats) == 1 else recognise(file, formats)
    described = file.path.with_name("config.json")
    config = read_json(described) if described.is_file() else None
    found = known.architecture(file, config)
    if found is None:
        beside = "" if config else f" and there is no {described.name} beside them"
        raise UserError(
            f"{file}: weights of the format {known.name} do not describe their architecture"
            f"{beside}; name the model"
        )
    return found
