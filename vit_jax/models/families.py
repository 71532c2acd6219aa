"""Families of models: from plain fields to a config dataclass to a module, and back."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError, lookup, unknown
from vit_jax.models.clip.model import CLIP, CLIPConfig
from vit_jax.models.clip.towers import TOWERS
from vit_jax.models.mae.model import MAE, MAEConfig

# Name in configs -> the class and the dataclass that describes it.
FAMILIES: dict[str, tuple[type, type]] = {
    **TOWERS,
    "clip": (CLIP, CLIPConfig),
    "mae": (MAE, MAEConfig),
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def family_of(architecture: Any) -> str:
    """The name in `FAMILIES` of a config dataclass."""
    return next(name for name, (_, config) in FAMILIES.items() if type(architecture) is config)


def describe(architecture: Any) -> dict[str, Any]:
    """Plain fields, each architecture with its `family`; `parse_family` is the way back."""
    fields: dict[str, Any] = {}
    if type(architecture) in [config for _, config in FAMILIES.values()]:
        fields["family"] = family_of(architecture)
    for field in dataclasses.fields(architecture):
        value = getattr(architecture, field.name)
        fields[field.name] = describe(value) if dataclasses.is_dataclass(value) else value
    return fields


def build(
    family: str,
    architecture: Any,
    *,
    rngs: nnx.Rngs,
    dtype: str = "float32",
    scan: bool = True,
    remat: str = "none",
) -> Any:
    """Builds a model with fresh parameters.

    Args:
        family: a key of `FAMILIES`.
        architecture: the family's config dataclass, or a mapping of its fields.
        rngs: source of the parameters' keys.
        dtype: compute type, "float32" or "bfloat16"; parameters are float32.
        scan: whether blocks are scanned (one trace) or unrolled; the parameters are the same.
        remat: a key of `layers.REMAT_POLICIES`.

    Raises:
        UserError: unknown family, field or value.
    """
    module, config_class = lookup(FAMILIES, family, "model family")
    if isinstance(architecture, Mapping):
        architecture = parse(config_class, architecture)
    compute = lookup(DTYPES, dtype, "dtype")
    return module(architecture, rngs=rngs, dtype=compute, scan=scan, remat=remat)


def parse_family(fields: Mapping[str, Any], path: str = "model") -> Any:
    """Builds the config dataclass that the field `family` names, from the other fields."""
    fields = dict(fields)
    _, config_class = lookup(FAMILIES, fields.pop("family", ""), "model family")
    return parse(config_class, fields, path)


def parse(config_class: type, fields: Mapping[str, Any], path: str = "model") -> Any:
    """Builds a (nested) config dataclass from a mapping; an unknown field is an error."""
    hints = typing.get_type_hints(config_class)
    values = {}
    for key, value in fields.items():
        if key not in hints:
            raise unknown(f"{path}.{key}", [f"{path}.{k}" for k in hints], "key")
        if isinstance(value, Mapping) and "family" in value:
            value = parse_family(value, f"{path}.{key}")
        elif dataclasses.is_dataclass(hints[key]):
            value = parse(typing.cast(type, hints[key]), value, f"{path}.{key}")
        elif not _matches(value, hints[key]):
            raise UserError(f"{path}.{key}={value!r}: expected {hints[key]}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)


def _matches(value: Any, hint: Any) -> bool:
    """Whether a plain value has the annotated type; an int is accepted for a float."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple | list)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
