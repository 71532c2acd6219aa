"""Keys of a config: defaults, unknown keys, units of length."""

import json

import pytest
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.errors import UserError


def test_a_mistyped_key_in_a_recipe_names_the_nearest(tiny_config):
    with pytest.raises(AttributeError, match="log_steps"):
        tiny_config.log_step = 3
    with pytest.raises(TypeError, match="float"):
        tiny_config.total_epochs = "many"


def test_unknown_and_missing_keys_are_refused(tiny_config):
    with pytest.raises(UserError, match=r"config key config\.\w+ is missing"):
        config_lib.validate(ConfigDict())
    with tiny_config.unlocked():
        tiny_config.data.trian = "x"
    with pytest.raises(
        UserError, match=r"'config\.data\.trian'; did you mean 'config\.data\.train'"
    ):
        config_lib.validate(tiny_config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("batch_size", 0, "batch_size is not set"),
        ("total_steps", 0, "no length is set"),
    ],
)
def test_required_keys(tiny_config, path, value, message):
    tiny_config.update_from_flattened_dict({path: value})
    with pytest.raises(UserError, match=message):
        config_lib.validate(tiny_config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_s61"}, "did you mean 'vit_s16'"),
        ({"name": "vit_s16", "widht": 8}, r"did you mean 'config\.model\.width'"),
        ({"name": "vit_s16", "width": "wide"}, r"config\.model\.width='wide': expected int"),
        ({"name": "vit_s16", "patch_size": 15}, "patch_size=15 does not divide image_size"),
        ({"name": "vit_s16", "inputs": {"resize": "crap"}}, "did you mean 'crop'"),
        ({"name": "vit_s16", "inputs": {"size": (9, 9)}}, r"set config\.model\.image_size"),
        ({"architecture": "vti"}, "did you mean 'vit'"),
        ({"width": 8}, r"config\.model\.name is missing"),
    ],
)
def test_model_block_is_checked(changes, message):
    config = ConfigDict({"model": changes})
    with pytest.raises(UserError, match=message):
        config_lib.model_spec(config)


def test_model_block_changes_the_registered_model():
    block = {"name": "vit_s16", "depth": 3, "image_size": (32, 64), "inputs": {"resize": "squash"}}
    spec = config_lib.model_spec(ConfigDict({"model": block}))
    assert (spec.architecture.depth, spec.architecture.width) == (3, 384)
    assert (spec.inputs.size, spec.inputs.resize) == ((32, 64), "squash")


@pytest.mark.parametrize(
    ("unit", "number", "expected"),
    [("steps", 7, 7), ("epochs", 2.0, 20), ("examples", 320, 10), ("percent", 25.0, 50)],
)
def test_units(unit, number, expected):
    config = ConfigDict({f"eval_{unit}": number})
    assert config_lib.steps(config, "eval", batch_size=32, epoch_examples=320, total=200) == (
        expected
    )


def test_at_most_one_unit():
    config = ConfigDict({"eval_steps": 3, "eval_percent": 5.0})
    with pytest.raises(UserError, match=r"eval_steps=3, eval_percent=5.0: more than one unit"):
        config_lib.steps(config, "eval", batch_size=1, epoch_examples=1, total=1)
    with pytest.raises(UserError, match="expected a positive number"):
        config_lib.steps(ConfigDict({"eval_steps": -1}), "eval", batch_size=1, epoch_examples=1)
    assert config_lib.steps(ConfigDict(), "eval", batch_size=1, epoch_examples=1) == 0


def test_a_saved_config_of_an_earlier_version_gets_the_new_keys(tiny_config):
    saved = tiny_config.to_dict()
    expected = json.loads(json.dumps(saved))
    del saved["compute"]["attention"], saved["data"]["detection"], saved["keep_best"]
    del saved["stages"]  # a block of components
    saved["compute"]["remat"] = "full"
    again = config_lib.with_defaults(ConfigDict(json.loads(json.dumps(saved))))
    expected["compute"]["remat"] = "full"
    assert json.loads(json.dumps(again.to_dict())) == expected
    config_lib.validate(again)
