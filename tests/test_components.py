"""Components by name: registries, dotted paths, parsing and checking of keys."""

import dataclasses
from typing import Literal

import pytest

from vit_jax.components import Registry, config_class, matches, parse
from vit_jax.errors import UserError


class Focal:
    """A component."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the component."""

        gamma: float = 2.0
        reduction: Literal["mean", "sum"] = "mean"

    def __init__(self, config: Config):
        self.config = config


class Margin:
    """A component with other keys."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the component."""

        margin: float

    def __init__(self, config: Config):
        self.config = config


LOSSES = Registry("loss", {"focal": f"{__name__}:Focal", "margin": f"{__name__}:Margin"})


def test_a_block_selects_a_component_and_its_keys():
    component, config = LOSSES.select({"name": "focal", "gamma": 1}, "config.loss")
    assert component is Focal
    assert config == Focal.Config(gamma=1)


def test_a_component_from_outside_the_registry():
    component, config = LOSSES.select({"name": "optax:adabelief", "eps": 0.5}, "config.loss")
    assert component.__name__ == "adabelief"
    assert config.eps == 0.5


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, r"config\.loss\.name is missing: expected one of focal, margin"),
        ({"name": "focall"}, "unknown loss in config.loss 'focall'; did you mean 'focal'"),
        ({"name": "no_such_module:X"}, "cannot be imported .*PYTHONPATH"),
        ({"name": f"{__name__}:Focall"}, "did you mean 'Focal'"),
        (
            {"name": "focal", "gama": 1.0},
            r"'config\.loss\.gama'; did you mean 'config\.loss\.gamma'\? "
            r"\(keys of config\.loss: gamma, reduction\)",
        ),
        (
            {"name": "focal", "margin": 1.0},
            "margin does not apply to the loss 'focal': it is a key of margin",
        ),
        ({"name": "focal", "gamma": "big"}, r"config\.loss\.gamma='big': expected float"),
        ({"name": "focal", "reduction": "men"}, r"config\.loss\.reduction='men': expected"),
        ({"name": "margin"}, r"config\.loss\.margin is not set: expected float"),
    ],
)
def test_wrong_blocks(block, message):
    with pytest.raises(UserError, match=message):
        LOSSES.select(block, "config.loss")


def test_every_name_of_a_registry_of_the_library_resolves():
    from vit_jax.data.augment import TRANSFORMS
    from vit_jax.data.sources import SOURCES
    from vit_jax.evaluators import EVALUATORS
    from vit_jax.objectives import OBJECTIVES
    from vit_jax.tracking import TRACKERS
    from vit_jax.training.optimizers import OPTIMIZERS
    from vit_jax.training.schedules import SCHEDULES

    registries = (EVALUATORS, OBJECTIVES, OPTIMIZERS, SCHEDULES, SOURCES, TRACKERS, TRANSFORMS)
    for registry in registries:
        for name in registry.table:
            component = registry.resolve(name)
            assert component.__doc__, f"{registry.kind} {name}"
            config_class(component)


@dataclasses.dataclass(frozen=True)
class Inner:
    size: tuple[int, int] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    names: tuple[str, ...] = ()
    limit: float | None = None


def test_nested_fields_change_only_what_they_name():
    base = Outer(inner=Inner(size=(3, 4)), names=("a",))
    found = parse(Outer, {"inner": {"size": [5, 6]}, "limit": 1}, "config.outer", base=base)
    assert found == Outer(inner=Inner(size=(5, 6)), names=("a",), limit=1)
    with pytest.raises(UserError, match=r"config\.outer\.inner\.size=\(1,\): expected tuple"):
        parse(Outer, {"inner": {"size": (1,)}}, "config.outer")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (True, int, False),
        (True, float, False),
        (None, float | None, True),
        ("a", tuple[str, ...], False),
        (["a"], tuple[str, ...], True),
        ((1, "a"), tuple[int, str], True),
        ("x", Literal["x", "y"], True),
    ],
)
def test_values_match_annotations(value, hint, expected):
    assert matches(value, hint) is expected
