"""Short specs of data sources and tokenizers: `NAME:PLACE?option=value&option=value`.

The name is one of a registry, or `package.module:Name` for a component from outside this package,
as `my_project.data:Clouds:train?size=3`. The options are the fields of the component's `Config`.
"""

import ast
import dataclasses
import importlib.util
import re
import typing
from typing import Any

from vit_jax.components import Registry, matches, parse
from vit_jax.errors import UserError, check_name, unknown

# A `?` in a pattern of files is no query: an option has a name and `=`.
_QUERY = re.compile(r"(?P<place>.*?)\?(?P<options>\w+=[^&]*(?:&\w+=[^&]*)*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A parsed spec.

    Attributes:
        name: name in the registry, or `package.module:Name`.
        place: text between the name and the options: a path, a pattern, a split.
        options: values of the options as text.
    """

    name: str
    place: str
    options: dict[str, str]


def parse_spec(text: str, registry: Registry) -> Spec:
    """Splits a spec into its parts, without importing the component.

    Args:
        text: the spec.
        registry: names of components.

    Raises:
        UserError: an unknown name; the message contains the nearest one.
    """
    name, _, place = text.partition(":")
    if name not in registry.table:
        attribute, _, rest = place.partition(":")
        if not (attribute.isidentifier() and _is_module(name)):
            raise unknown(name, registry.table, registry.kind)
        name, place = f"{name}:{attribute}", rest
    options: dict[str, str] = {}
    if match := _QUERY.fullmatch(place):
        place = match["place"]
        options = dict(option.split("=", 1) for option in match["options"].split("&"))
    return Spec(name, place, options)


def _is_module(name: str) -> bool:
    """Whether a name can only be a module's: it has a dot, or there is such a module."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    return "." in name or importlib.util.find_spec(name) is not None


def parse_options(config: type, spec: Spec) -> Any:
    """Builds a component's `Config` from the options of a spec.

    Text is kept where the field accepts it. `tuple[str, ...]` is separated by commas; numbers and
    booleans are written as in Python.

    Args:
        config: dataclass of the options.
        spec: the spec.

    Raises:
        UserError: an unknown or missing option, or a value of another type.
    """
    hints = typing.get_type_hints(config)
    names = [field.name for field in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    for key, text in spec.options.items():
        check_name(key, names, f"option of {spec.name}:")
        if not text:
            raise UserError(f"{spec.name}: the option {key} has no value, expected {key}=VALUE")
        values[key] = _parse_value(text, hints[key])
    return parse(config, values, f"options of {spec.name}")


def _parse_value(text: str, hint: Any) -> Any:
    if matches(text, hint):
        return text
    if matches(("",), hint):
        return tuple(text.split(","))
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError):
        return text  # `parse` refuses it
