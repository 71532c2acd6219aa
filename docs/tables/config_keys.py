"""Page of every config key: type, default and meaning, from the code.

The keys that belong to no component come from the comments of `vit_jax.config.default_config`,
those of a component from the docstring of its `Config`.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.components import Registry, config_class, describe_type
from vit_jax.data.augment import TRANSFORMS
from vit_jax.data.crops import CropsConfig
from vit_jax.data.detection import DetectionConfig
from vit_jax.evaluators import EVALUATORS
from vit_jax.inputs import ImageInputs
from vit_jax.models.registry import ARCHITECTURES, architecture_class
from vit_jax.objectives import OBJECTIVES
from vit_jax.tracking import TRACKERS
from vit_jax.training.optimizers import OPTIMIZERS, OptimConfig
from vit_jax.training.schedules import SCHEDULES

HEAD = """# Config keys

Every key of a run's config, generated from the code. A recipe is a file that changes some of them;
on the command line `--config.KEY=VALUE` does. Keys that do not apply are refused, with the nearest
name.
"""
ROWS = ["| key | type | default | meaning |", "|---|---|---|---|"]


def page() -> str:
    """The page, as Markdown."""
    sections = [
        HEAD,
        "## The run\n",
        *_table(_run_rows()),
        "",
        *_class("`config.model.inputs`", ImageInputs),
        *_class("`config.data.detection`", DetectionConfig),
        *_class("`config.data.crops`", CropsConfig),
        *_class("`config.optim`, for all optimizers", OptimConfig),
        "## Optimizers\n\nFurther keys of `config.optim`, by `config.optim.name`.\n",
        *_registry(OPTIMIZERS, shared=OptimConfig),
        "## Schedules\n\nFurther keys of `config.optim`, by `config.optim.schedule`.\n",
        *_registry(SCHEDULES),
        "## Objectives\n\nKeys of `config.objective`, by `config.objective.name`.\n",
        *_registry(OBJECTIVES),
        "## Models\n\nKeys of `config.model`, by the architecture of the registered model. An "
        "architecture within another is a block, as `config.model.image`.\n",
    ]
    for name in ARCHITECTURES:
        sections += _class(f"`{name}`", architecture_class(name), level=3)
    sections += [
        "## Evaluations\n\nKeys of `config.evals.TYPE.NAME`, by type. `optional` and `evaluator` "
        "apply to every type, see [evaluation](evaluation.md).\n",
        *_registry(EVALUATORS),
        "## Trackers\n\nKeys of `config.trackers.NAME`.\n",
        *_registry(TRACKERS),
        "## Augmentations\n\nArguments of the transforms of `config.data.augment`, in this order, "
        "as `randaugment(2, 9)|flip`.\n",
        *_registry(TRANSFORMS),
    ]
    return "\n".join(sections) + "\n"


def _run_rows() -> Iterator[tuple[str, str, str, str]]:
    """Keys of `default_config`; a comment behind an assignment, or above it, is its meaning."""
    defaults = _flat(config_lib.default_config("vit_b16"), "config")
    source = textwrap.dedent(inspect.getsource(config_lib.default_config))
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        key = ast.unparse(node.targets[0])
        meaning = _comment(lines, node)
        if not meaning and isinstance(defaults[key], Mapping):  # a block, whose keys follow
            continue
        if not meaning:
            raise ValueError(f"{key} has no comment in vit_jax.config.default_config")
        value = defaults[key]
        if isinstance(value, Mapping):
            yield key, "block", _value(value.get("name", "")), meaning
        else:
            yield key, type(value).__name__, _value(value), meaning


def _comment(lines: list[str], node: ast.Assign) -> str:
    """Comment on the last line of an assignment, or on the lines above it."""
    behind = re.search(r"\s# (.*)$", lines[(node.end_lineno or node.lineno) - 1])
    if behind:
        return behind[1]
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("# "):
            break
        above.insert(0, line.strip().removeprefix("# "))
    return " ".join(above)


def _flat(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Values by path; blocks of components are values."""
    found: dict[str, Any] = {}
    for key, value in block.items():
        plain = value.to_dict() if isinstance(value, ConfigDict) else value
        found[f"{path}.{key}"] = plain
        if isinstance(value, ConfigDict):
            found |= _flat(value, f"{path}.{key}")
    return found


def _registry(registry: Registry, shared: type | None = None) -> list[str]:
    """A section per component; keys of `shared` are left out."""
    lines: list[str] = []
    for name in registry.table:
        lines += _class(f"`{name}`", registry.resolve(name), level=3, shared=shared)
    return lines


def _class(title: str, component: Any, level: int = 2, shared: type | None = None) -> list[str]:
    """Heading, first line of the docstring, and the keys of a component."""
    config = config_class(component)
    skipped = {field.name for field in dataclasses.fields(shared)} if shared else set()
    meanings, hints = _attributes(config), typing.get_type_hints(config)
    rows = []
    for field in dataclasses.fields(config):
        if field.name in skipped or not field.init:
            continue
        default = "required"
        if field.default is not dataclasses.MISSING:
            default = _value(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = _value(field.default_factory())
        kind = _code(describe_type(hints[field.name]))
        rows.append((field.name, kind, default, meanings.get(field.name, "")))
    summary = (inspect.getdoc(component) or "").split("\n\n")[0].replace("\n", " ")
    lines = [f"{'#' * level} {title}\n", f"{_escape(summary)}\n"]
    return [*lines, *(_table(rows) if rows else ["It has no keys."]), ""]


def _attributes(config: type) -> dict[str, str]:
    """Meanings of the fields, from the sections `Attributes:` of a dataclass and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        text = inspect.cleandoc(cls.__doc__ or "")
        for title in ("Attributes", "Args"):
            part = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", text, re.M)
            if part:
                for name, meaning in re.findall(
                    r"^    (\w+): ((?:.*\n?)(?:^     +.*\n?)*)", part[1], re.M
                ):
                    found[name] = " ".join(meaning.split())
    return found


def _table(rows: Any) -> list[str]:
    lines = []
    for key, kind, default, meaning in rows:
        lines.append(f"| `{key}` | {kind} | {default} | {_escape(meaning)} |")
    return [*ROWS, *lines]


def _value(value: Any) -> str:
    """A default as code; that of an architecture by its class."""
    if dataclasses.is_dataclass(value):
        return f"`{type(value).__name__}`"
    return _code("''" if value == "" else str(value))


def _code(text: str) -> str:
    text = text.replace("|", "or") if "|" in text else text
    return f"`{text[:77] + '...' if len(text) > 80 else text}`"


def _escape(text: str) -> str:
    """Text for a cell of a table: bars, and characters with a meaning outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part.replace("|", "\\|") if i % 2 else re.sub(r"([|*_<\[{])", r"\\\1", part)
        for i, part in enumerate(parts)
    )
