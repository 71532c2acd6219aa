"""Recipes: config files, and changes of single keys from the command line."""

import ast
import hashlib
import importlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.components import describe_type
from vit_jax.errors import UserError, printable, unknown, unknown_key
from vit_jax.paths import as_local_path

UNITS = ("steps", "epochs", "examples", "percent")
# Blocks whose keys belong to the component or model that they name.
OPEN_BLOCKS = ("model", "objective", "optim", "evals", "hooks", "trackers", "stages", "draw")


def load_recipe(argument: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs a recipe and applies overrides.

    Args:
        argument: path of a Python file with `get_config(arg="")`, after a colon the argument:
            "configs/clip_emoji.py:small". Where there is no such file, a recipe that comes with
            the library: "clip_emoji", "ablations/clip_loss".
        overrides: "key.path=value", see `apply_override`.

    Raises:
        UserError: no such file, no `get_config` in it, or an unknown key.

    Example:
        >>> load_recipe("clip_emoji", ["optim.lr=0.003"]).optim.lr
        0.003
    """
    name, arg = _split(argument)
    module = recipe_module(argument)
    if not hasattr(module, "get_config"):
        raise UserError(f"{name} has no function get_config(arg)")
    config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{name}: get_config returned {type(config).__name__}, expected ConfigDict")
    for override in overrides:
        apply_override(config, override)
    return config


def recipe_module(argument: str) -> types.ModuleType:
    """Imports the file of a recipe.

    Args:
        argument: see `load_recipe`.

    Raises:
        UserError: no such file.
    """
    return load_module(_find(_split(argument)[0]))


def _split(argument: str) -> tuple[str, str]:
    """Name of the file, and the argument of its functions."""
    name, _, arg = argument.partition(":")
    if arg.startswith("//"):  # a URL, not an argument that is a path
        name, _, arg = str(as_local_path(argument, "recipes are imported")).partition(":")
    return str(as_local_path(name, "recipes are imported")), arg


def load_module(path: pathlib.Path) -> types.ModuleType:
    """Imports a Python file as a part of a package of its own that is its folder.

    So `from . import base_recipe` finds the file beside it, from any working directory, and other
    packages named `configs` are not in the way.
    """
    folder = path.resolve().parent
    package = "vit_jax_recipes_" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    if package not in sys.modules:
        parent = types.ModuleType(package)
        parent.__path__ = [str(folder)]
        sys.modules[package] = parent
    return importlib.import_module(f"{package}.{path.stem}")


def read_evals(path: str) -> dict[str, Any]:
    """Reads the evaluation blocks of a Python file with a function `get_evals()`.

    Args:
        path: local file.

    Returns:
        Blocks by type and name, as `config.evals`.

    Raises:
        UserError: no such file, or no such function in it.
    """
    file = as_local_path(path, "evaluations are imported")
    if not file.is_file():
        raise UserError(f"no file of evaluations {path}")
    spec = importlib.util.spec_from_file_location("evals", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--evals={path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_evals"):
        raise UserError(f"{path} has no function get_evals()")
    return module.get_evals()


def _find(name: str) -> pathlib.Path:
    """The file of a recipe: a path, or a recipe that comes with the library."""
    path = pathlib.Path(name)
    if path.is_file():
        return path
    shipped = _shipped_folder()
    inner = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    if shipped is not None and (shipped / inner.with_suffix(".py")).is_file():
        return shipped / inner.with_suffix(".py")
    near = [str(p) for p in sorted(path.parent.glob("*.py"))]
    if shipped is not None:
        near += [f"configs/{p.relative_to(shipped)}" for p in sorted(shipped.rglob("*.py"))]
    raise unknown(name, near, "recipe")


def _shipped_folder() -> pathlib.Path | None:
    """The folder `configs`: that of a checkout, or the one installed with the package."""
    for folder in (
        pathlib.Path(__file__).parent / "configs",
        pathlib.Path(__file__).parents[1] / "configs",
    ):
        if (folder / "clip_emoji.py").is_file():
            return folder
    return None


def apply_override(config: ConfigDict, override: str) -> None:
    """Changes one key.

    Values are Python literals; what is none is text. A value that replaces a whole block names its
    component: `model=swin_t`. Setting one unit of a length, as `total_steps`, unsets the others.

    Args:
        config: changed in place.
        override: "optim.lr=0.003".

    Raises:
        UserError: an unknown key (the nearest one and those of the block are given), or a value of
            another type.
    """
    path, equals, text = override.partition("=")
    if not equals:
        path = printable(path)
        raise UserError(f"--config.{path}: expected a value, as --config.{path}=VALUE")
    *blocks, key = path.split(".")
    block, is_open = config, False
    for i, name in enumerate(blocks):
        is_open = is_open or (i == 0 and name in OPEN_BLOCKS)
        if name not in block and is_open:
            block[name] = ConfigDict()
        _check_key(block, name, ["config", *blocks[:i]])
        block = block[name]
        if not isinstance(block, ConfigDict):
            raise UserError(f"config.{'.'.join(blocks[: i + 1])} has no keys: it is {block!r}")
    if not is_open:
        _check_key(block, key, ["config", *blocks])
    _set(block, key, text, f"config.{path}", is_open)


def _set(block: ConfigDict, key: str, text: str, path: str, is_open: bool) -> None:
    value = parse_value(text)
    if isinstance(block.get(key), ConfigDict):
        block[key] = value if isinstance(value, dict) else {"name": value}
        return
    stem, _, unit = key.rpartition("_")
    if unit in UNITS and value:
        for other in UNITS:
            if other != unit and block.get(f"{stem}_{other}"):
                block[f"{stem}_{other}"] = type(block[f"{stem}_{other}"])(0)
    if is_open:  # the component checks the type
        with block.ignore_type():
            block[key] = value
        return
    block[key] = _cast(value, block.get_type(key), text, path)


def parse_value(text: str) -> Any:
    """A Python literal; text that is none stays text. `true` and `false` count as literals."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _cast(value: Any, wanted: type, text: str, path: str) -> Any:
    if wanted is str:
        return text.strip("'\"")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is tuple:
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not wanted:
        raise UserError(f"{path}={printable(text)}: expected {describe_type(wanted)}")
    return value


def _check_key(block: ConfigDict, key: str, path: list[str]) -> None:
    if key not in block:
        raise unknown_key(key, ".".join(path), block)
