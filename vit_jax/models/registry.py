"""Architectures and registered models by name.

A package of `ARCHITECTURES` has

    CONFIG    dataclass of the architecture; its method `make` builds the module
    MODELS    name -> ModelSpec of the published sizes
    ALIASES   other libraries' names -> names of MODELS, see `names`

and optionally a module `weights` with `FORMATS`, the formats of other libraries' weight files.
"""

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vit_jax.components import import_name, parse
from vit_jax.errors import UserError, unknown
from vit_jax.models import names
from vit_jax.models.spec import ModelSpec

if TYPE_CHECKING:
    from vit_jax.weights.format import Format

# Name in configs and weight files -> package.
ARCHITECTURES: dict[str, str] = {
    "vit": "vit_jax.models.vit",
    "swin": "vit_jax.models.swin",
    "resnet": "vit_jax.models.resnet",
    "clip_resnet": "vit_jax.models.clip_resnet",
    "clip": "vit_jax.models.clip",
    "mae": "vit_jax.models.mae",
    "cappa": "vit_jax.models.cappa",
    "coca": "vit_jax.models.coca",
    "clip_captioner": "vit_jax.models.clip_captioner",
    "siglip2": "vit_jax.models.siglip2",
    "dino": "vit_jax.models.dino",
    "owl": "vit_jax.models.owl",
    "regionclip": "vit_jax.models.regionclip",
    "grounding_dino": "vit_jax.models.grounding_dino",
    "glip": "vit_jax.models.glip",
    "clipseg": "vit_jax.models.clipseg",
    "sam": "vit_jax.models.sam",
    "llava": "vit_jax.models.llava",
    "qwen_vl": "vit_jax.models.qwen_vl",
    "clip_text": "vit_jax.models.clip_text",
}


def architecture_class(name: str, path: str = "architecture") -> type:
    """Imports the dataclass of an architecture.

    Args:
        name: key of `ARCHITECTURES`, or `package.module:Config`.
        path: config key that holds the name, for messages.

    Raises:
        UserError: unknown name.
    """
    if name in ARCHITECTURES:
        return _package(name).CONFIG
    if ":" in name:
        return import_name(name, f"architecture in {path}")
    raise unknown(name, ARCHITECTURES, f"architecture in {path}")


def architecture_name(architecture: Any) -> str:
    """Returns the name of an architecture, the inverse of `architecture_class`.

    Args:
        architecture: dataclass of an architecture, or an instance.
    """
    config = architecture if isinstance(architecture, type) else type(architecture)
    for name in ARCHITECTURES:
        if _package(name).CONFIG is config:
            return name
    return f"{config.__module__}:{config.__qualname__}"


def describe(architecture: Any) -> dict[str, Any]:
    """Converts an architecture to plain fields, the inverse of `parse_architecture`.

    Args:
        architecture: dataclass of an architecture.

    Returns:
        Field -> value, and `architecture`, the name. Nested architectures are nested dicts.
    """
    fields: dict[str, Any] = {}
    if hasattr(architecture, "make"):
        fields["architecture"] = architecture_name(architecture)
    for field in dataclasses.fields(architecture):
        value = getattr(architecture, field.name)
        fields[field.name] = describe(value) if dataclasses.is_dataclass(value) else value
    return fields


def parse_architecture(fields: Mapping[str, Any], path: str, base: Any = None) -> Any:
    """Builds an architecture from plain fields.

    Args:
        fields: `architecture`, the name, and the fields of its dataclass. Or `name`, a registered
            model whose image encoder is the base, and the fields that differ from it.
        path: of the fields, for messages.
        base: architecture that absent fields are taken from, where it is the one named.

    Raises:
        UserError: an unknown name, an unknown field, or an invalid value.
    """
    fields = dict(fields)
    if model := fields.pop("name", None):
        base = model_spec(model).architecture
        base = getattr(base, "image", base)
    name = fields.pop("architecture", None)
    if name is None and base is None:
        raise UserError(f"{path}.architecture is not set: expected one of {list(ARCHITECTURES)}")
    config = type(base) if name is None else architecture_class(name, path)
    same = base if isinstance(base, config) else None
    return parse(config, fields, path, base=same, nested=parse_architecture)


def weight_formats(architecture: Any = None) -> "tuple[Format, ...]":
    """Formats of weight files of other libraries, in the order of `ARCHITECTURES`.

    The module `weights` of an architecture's package, if there is one, lists them as `FORMATS`. The
    dataclass of an architecture from outside this package names such a tuple in its class attribute
    `weight_formats`, as "my_project.convnext.weights:FORMATS".

    Args:
        architecture: architecture whose own formats, and those of its parts, are added if it is
            from outside this package.
    """
    found: list[Format] = []
    for package in ARCHITECTURES.values():
        if importlib.util.find_spec(f"{package}.weights"):
            found += importlib.import_module(f"{package}.weights").FORMATS
    for part in _parts(architecture):
        if name := getattr(type(part), "weight_formats", None):
            found += import_name(name, f"weight formats of {type(part).__name__}")
    return tuple(found)


def _parts(architecture: Any) -> Iterator[Any]:
    """An architecture and the architectures among its fields."""
    if dataclasses.is_dataclass(architecture):
        yield architecture
        for field in dataclasses.fields(architecture):
            yield from _parts(getattr(architecture, field.name))


def model_names() -> list[str]:
    """Lists the registered names, sorted."""
    return sorted(_models())


def model_spec(name: str) -> ModelSpec:
    """Finds the specification of a model.

    Args:
        name: registered name; a name of timm, open_clip, transformers or big_vision in any
            spelling, see `names`; or `package.module:Name` of a `ModelSpec` or of a function that
            returns one.

    Raises:
        UserError: an unknown name, with the nearest one, or an ambiguous name, with the candidates.
    """
    if _is_import(name):
        found = import_name(name, "model")
        return found if isinstance(found, ModelSpec) else found()
    models = _models()
    return models[names.resolve(name, models, aliases())]


@functools.cache
def aliases() -> dict[str, str]:
    """Returns the names of other libraries, alias -> registered name."""
    return {alias: name for package in _packages() for alias, name in package.ALIASES.items()}


def _is_import(name: str) -> bool:
    """Whether a name is `package.module:Name`, and not `hf-hub:owner/name`."""
    return ":" in name and "/" not in name


def _package(name: str) -> Any:
    return importlib.import_module(ARCHITECTURES[name])


def _packages() -> Iterator[Any]:
    return map(_package, ARCHITECTURES)


@functools.cache
def _models() -> dict[str, ModelSpec]:
    return {name: spec for package in _packages() for name, spec in package.MODELS.items()}
