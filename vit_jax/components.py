"""Components that a config names, and the parsing of their keys.

A component is a class with a nested dataclass `Config`, whose fields are its keys:

    class Focal:
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Config:
            gamma: float = 2.0

        def __init__(self, config: Config, context: Context): ...

A config selects it by name and sets keys beside the name:

    config.objective = {"name": "my_project.losses:Focal", "gamma": 1.5}

Names are those of a registry, or `package.module:Name` for a component from outside this package.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax.errors import UserError, unknown, unknown_key

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Registry:
    """Components of one kind by name, imported when they are first needed.

    Attributes:
        kind: noun for messages, as "objective".
        table: name -> "package.module:Name".
    """

    kind: str
    table: Mapping[str, str]

    def resolve(self, name: str, path: str = "") -> Any:
        """The component of a name.

        Args:
            name: key of `table`, or `package.module:Name`.
            path: config key that holds the name, for messages.

        Raises:
            UserError: unknown name (the nearest one is given), or a module that cannot be imported.
        """
        where = f"{self.kind} in {path}" if path else self.kind
        if not isinstance(name, str):
            raise UserError(f"{where}: expected a name, found {name!r}")
        if name in self.table:
            return import_name(self.table[name], where)
        if ":" in name:
            return import_name(name, where)
        raise unknown(name, self.table, where)

    def select(self, block: Fields, path: str) -> tuple[Any, Any]:
        """The component that a config block names, and its parsed keys.

        Args:
            block: `name` and keys of the component.
            path: of the block in the config, for messages.

        Returns:
            The component and an instance of its `Config`.

        Raises:
            UserError: a key that does not apply to the component, or a value of another type.
        """
        fields = dict(block)
        if "name" not in fields:
            raise UserError(f"{path}.name is missing: expected one of {', '.join(self.table)}")
        name = fields.pop("name")
        component = self.resolve(name, path)
        config = config_class(component)
        keys = [field.name for field in dataclasses.fields(config)]
        for key in fields:
            if key not in keys:
                raise self._inapplicable(key, name, keys, path)
        return component, parse(config, fields, path)

    def _inapplicable(self, key: str, name: str, keys: list[str], path: str) -> UserError:
        owners = [
            other
            for other in self.table
            if key in [f.name for f in dataclasses.fields(config_class(self.resolve(other)))]
        ]
        if not owners:
            return unknown_key(key, path, keys)
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
        hint = f" (did you mean {f'{path}.{near[0]}'!r}?)" if near else ""
        return UserError(
            f"{path}.{key} does not apply to the {self.kind} {name!r}{hint}: it is a key of "
            f"{', '.join(owners)}; keys of {name}: {', '.join(keys) or 'none'}"
        )


def import_name(name: str, what: str) -> Any:
    """Imports `package.module:Name`.

    Raises:
        UserError: no such module or no such name in it.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what}: {name!r} cannot be imported ({error}); a module of your own has to be on "
            "PYTHONPATH, or installed"
        ) from None
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{what}: {unknown(attribute, public, f'name in {module_name}')}")
    return getattr(module, attribute)


@functools.cache
def config_class(component: Any) -> type:
    """The dataclass of a component's keys.

    `component.Config` where there is one. For a plain function or class, a dataclass made of the
    parameters that have defaults, so that functions of other libraries can be named in configs.
    """
    if hasattr(component, "Config"):
        return component.Config
    if dataclasses.is_dataclass(component):
        return typing.cast(type, component)
    fields = [
        (parameter.name, Any, dataclasses.field(default=parameter.default))
        for parameter in inspect.signature(component).parameters.values()
        if parameter.default is not parameter.empty
    ]
    return dataclasses.make_dataclass(f"{component.__name__}Config", fields, frozen=True)


def parse(
    config: type,
    fields: Fields,
    path: str,
    *,
    base: Any = None,
    nested: Callable[[Fields, str, Any], Any] | None = None,
) -> Any:
    """Builds a dataclass, nested ones included, from plain fields.

    Args:
        config: dataclass.
        fields: values by name; those absent come from `base` or are the defaults.
        path: of the fields, for messages.
        base: instance of `config` with the values of absent fields.
        nested: builds a field that is a mapping with the key `architecture` or `name`, from the
            mapping, its path and the field of `base`.

    Raises:
        UserError: an unknown or missing field, or a value of another type.
    """
    hints = typing.get_type_hints(config)
    names = [field.name for field in dataclasses.fields(config) if field.init]
    values: dict[str, Any] = {}
    for key, value in fields.items():
        if key not in names:
            raise unknown_key(key, path, names)
        old, hint = getattr(base, key, None), hints[key]
        if isinstance(value, Mapping) and nested and value.keys() & {"architecture", "name"}:
            value = nested(value, f"{path}.{key}", old)
        elif isinstance(value, Mapping) and dataclasses.is_dataclass(old):
            value = parse(type(old), value, f"{path}.{key}", base=old, nested=nested)
        elif isinstance(value, Mapping) and dataclasses.is_dataclass(hint):
            value = parse(typing.cast(type, hint), value, f"{path}.{key}", nested=nested)
        elif not matches(value, hint):
            raise UserError(f"{path}.{key}={value!r}: expected {describe_type(hint)}")
        values[key] = _to_tuples(value)
    if base is not None:
        return dataclasses.replace(base, **values)
    required = [
        field.name
        for field in dataclasses.fields(config)
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise UserError(
            f"{path}.{missing[0]} is not set: expected {describe_type(hints[missing[0]])}"
        )
    return config(**values)


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value has the annotated type; an int is accepted for a float."""
    if hint is Any:
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, option) for option in args)
    if origin is typing.Literal:
        return value in args
    if origin in (tuple, Sequence):
        if not isinstance(value, tuple | list):
            return False
        if origin is Sequence or (len(args) == 2 and args[1] is Ellipsis):
            return all(matches(v, args[0]) for v in value)
        return len(value) == len(args) and all(
            matches(v, arg) for v, arg in zip(value, args, strict=True)
        )
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe_type(hint: Any) -> str:
    """A type annotation as a user reads it."""
    if isinstance(hint, type):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "")


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(v) for v in value) if isinstance(value, list | tuple) else value
