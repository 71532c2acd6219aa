"""Configs: every key declared once, typos refused with the nearest name, units of time."""

import importlib
import pathlib

import pytest
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_short_and_explains_itself(name):
    module = importlib.import_module(f"configs.{name}")
    config_lib.validate(module.get_config())
    source = (ROOT / "configs" / f"{name}.py").read_text()
    assert len(source.splitlines()) <= 60
    assert f"--config configs/{name}.py" in module.__doc__


def test_a_mistyped_key_in_a_recipe_names_the_nearest(tiny_config):
    with pytest.raises(AttributeError, match="warmup_steps"):
        tiny_config.optim.warmup_step = 3
    with pytest.raises(TypeError, match="float"):
        tiny_config.optim.lr = "fast"


def test_validate_refuses_foreign_configs(tiny_config):
    with pytest.raises(UserError, match="get_config returned dict"):
        config_lib.validate({})
    with pytest.raises(UserError, match=r"config key config\.\w+ is missing"):
        config_lib.validate(ConfigDict())
    with tiny_config.unlocked():
        tiny_config.optim.learning_rate = 1.0
    with pytest.raises(UserError, match=r"config key 'config\.optim\.learning_rate'; did you mean"):
        config_lib.validate(tiny_config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("batch_size", 0, "batch_size is not set"),
        ("total_steps", 0, "no length is set"),
        ("model.family", "clop", "did you mean 'clip'"),
        ("model.image.patch_size", 3, r"patch_size=3 does not divide image_size=\(8, 8\)"),
    ],
)
def test_validate_refuses_values(tiny_config, path, value, message):
    tiny_config.update_from_flattened_dict({path: value})
    with pytest.raises(UserError, match=message):
        config_lib.validate(tiny_config)


@pytest.mark.parametrize(
    ("unit", "number", "expected"),
    [("steps", 7, 7), ("epochs", 2.0, 20), ("examples", 320, 10), ("percent", 25.0, 50)],
)
def test_units(unit, number, expected):
    config = ConfigDict({f"eval_{unit}": number})
    assert config_lib.steps(config, "eval", batch_size=32, epoch_examples=320, total=200) == (
        expected
    )


def test_units_exclude_each_other():
    config = ConfigDict({"eval_steps": 3, "eval_percent": 5.0})
    with pytest.raises(UserError, match=r"eval_steps=3, eval_percent=5.0: more than one unit"):
        config_lib.steps(config, "eval", batch_size=1, epoch_examples=1, total=1)
    with pytest.raises(UserError, match="expected a positive number"):
        config_lib.steps(ConfigDict({"eval_steps": -1}), "eval", batch_size=1, epoch_examples=1)
    assert config_lib.steps(ConfigDict(), "eval", batch_size=1, epoch_examples=1) == 0
