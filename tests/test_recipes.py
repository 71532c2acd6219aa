"""Recipes: found from any directory, beside other `configs` packages, changed key by key."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

from vit_jax import config as config_lib
from vit_jax.errors import UserError
from vit_jax.objectives import OBJECTIVES
from vit_jax.recipes import apply_override, load_recipe, recipe_module
from vit_jax.training.optimizers import parse_optim

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
ABLATIONS = sorted(path.stem for path in (ROOT / "configs" / "ablations").glob("*.py"))
OF_A_PATH = (
    "clip_your_pairs",
    "vit_your_folder",
    "dino_your_images",
)  # see tests/data/test_choices.py
STAGES = [(name, "") for name in RECIPES if name not in OF_A_PATH] + [
    ("vit_b16_augreg", "finetune"),
    ("deit3_b16", "finetune"),
]


@pytest.mark.parametrize(("name", "arg"), STAGES)
def test_every_key_of_a_recipe_applies(name, arg):
    check_keys(load_recipe(f"{ROOT}/configs/{name}.py:{arg}"))


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_key_of_an_ablation_applies(name):
    recipe = f"{ROOT}/configs/ablations/{name}.py"
    variants = recipe_module(recipe).get_sweep()
    assert {changes["seed"] for changes in variants.values()} == {0, 1, 2}
    for changes in variants.values():
        check_keys(load_recipe(recipe, [f"{key}={value!r}" for key, value in changes.items()]))


def check_keys(config):
    config_lib.validate(config)
    config_lib.model_spec(config)
    OBJECTIVES.select(config.objective.to_dict(), "config.objective")
    parse_optim(config.optim.to_dict())


@pytest.mark.parametrize("name", RECIPES)
def test_docstring_gives_summary_command_time_and_result(name):
    source = (ROOT / "configs" / f"{name}.py").read_text()
    doc = ast.get_docstring(ast.parse(source)) or ""
    assert len(source.splitlines()) <= 60
    assert doc.splitlines()[0].endswith(".")
    path = ":PATH" if name in OF_A_PATH else ""
    assert f"--config configs/{name}.py{path} --workdir" in doc
    for word in ("Time:", "Result"):
        assert word in doc


def run_elsewhere(folder, code):
    """Runs Python in a folder that is not the checkout, with vit_jax on the path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, text=True, capture_output=True,
        timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path):
    """A project with a package `configs` of its own, whose recipe builds on another."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    (tmp_path / "configs" / "base.py").write_text(
        "from vit_jax.config import default_config\n"
        "def get_config(arg=''):\n"
        "    config = default_config('clip_vit_emoji')\n"
        "    config.batch_size = 7\n"
        "    return config\n"
    )
    (tmp_path / "configs" / "ablation.py").write_text(
        "from . import base\n"
        "def get_config(arg=''):\n"
        "    config = base.get_config()\n"
        "    config.seed = int(arg or 1)\n"
        "    return config\n"
    )
    return tmp_path


def test_recipes_of_the_library_and_of_a_project_with_its_own_configs(project):
    done = run_elsewhere(
        project,
        "from vit_jax.recipes import load_recipe\n"
        "own = load_recipe('configs/ablation.py:5')\n"
        "assert (own.batch_size, own.seed) == (7, 5)\n"
        "assert load_recipe('clip_emoji').batch_size == 256\n"
        "assert load_recipe('ablations/clip_loss').batch_size == 128\n"
        "by_path = load_recipe('configs/swin_mnist5k.py')\n"
        "assert by_path.model.name == 'swin_t'\n",
    )
    assert done.returncode == 0, done.stderr


def test_recipe_of_the_checkout_imports_as_a_module():
    code = "import configs.swin_mnist5k as c; print(c.get_config().model.name)"
    done = run_elsewhere(ROOT, code)
    assert done.stdout.strip() == "swin_t", done.stderr


def test_unknown_recipe_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did you mean 'configs/clip_emoji\.py'"):
        load_recipe("configs/clip_emojy.py")


def test_model_swap_on_the_command_line_brings_its_inputs():
    config = load_recipe("deit_b16", ["model=swin_t", "model.drop_path=0.2"])
    spec = config_lib.model_spec(config)
    assert type(spec.architecture).__name__ == "SwinConfig"
    assert spec.architecture.drop_path == 0.2


def test_image_tower_of_a_registered_model():
    config = load_recipe("clip_vit_b16", ["model.image={'name': 'vit_s16', 'num_classes': 0}"])
    image = config_lib.model_spec(config).architecture.image
    assert (image.width, image.num_classes, image.activation) == (384, 0, "gelu")


def test_a_length_in_one_unit_unsets_the_others():
    config = load_recipe("clip_emoji")
    apply_override(config, "total_epochs=2")
    assert (config.total_epochs, config.total_steps) == (2.0, 0)


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("batch_size=64", "batch_size", 64),
        ("total_epochs=2", "total_epochs", 2.0),
        ("data.train=emoji:train", "data.train", "emoji:train"),
        ("data.templates='a {}',", "data.templates", ("a {}",)),
        ("mesh.zero1=true", "mesh.zero1", True),
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.warmup_percent=5", "optim.warmup_percent", 5),
        ("model.image.image_size=(64, 32)", "model.image.image_size", (64, 32)),
        ("evals.knn.digits.train=digits:train", "evals.knn.digits.train", "digits:train"),
        ("hooks.mine.name=my_project.hooks:Mine", "hooks.mine.name", "my_project.hooks:Mine"),
    ],
)
def test_overrides(tiny_config, override, path, expected):
    apply_override(tiny_config, override)
    value = tiny_config
    for part in path.split("."):
        value = value[part]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "batchsize=1",
            r"did you mean 'config\.batch_size'\? \(keys of config: batch_size, checkpoint_",
        ),
        ("data.trian=x", r"did you mean 'config\.data\.train'\? \(keys of config\.data: augment, "),
        ("dta.train=x", r"did you mean 'config\.data'"),
        ("batch_size=2.5", r"config\.batch_size=2\.5: expected int"),
        ("mesh.zero1=maybe", r"config\.mesh\.zero1=maybe: expected bool"),
        ("batch_size.x=1", r"config\.batch_size has no keys"),
        ("batch_size", r"expected a value, as --config\.batch_size=VALUE"),
    ],
)
def test_wrong_overrides(tiny_config, override, message):
    with pytest.raises(UserError, match=message):
        apply_override(tiny_config, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"did you mean 'config\.optim\.lr'"),
        ("optim.momentum=0.9", "momentum does not apply to the optimizer 'adamw'"),
        ("optim.name=adamv", "did you mean 'adam"),
        ("optim.lr=fast", r"config\.optim\.lr='fast': expected float"),
    ],
)
def test_wrong_keys_of_components(tiny_config, override, message):
    apply_override(tiny_config, override)
    with pytest.raises(UserError, match=message):
        parse_optim(tiny_config.optim.to_dict())


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("optax:adabelief", "eps_root", 0.5),
        ("adabelief", "eps_root", 0.5),
        ("sgd", "nesterov", True),
    ],
)
def test_any_optimizer_by_name(tiny_config, name, key, value):
    apply_override(tiny_config, f"optim={name}")
    apply_override(tiny_config, f"optim.{key}={value}")
    assert parse_optim(tiny_config.optim.to_dict()).as_block()["name"] == name


def test_a_unit_of_a_component_replaces_the_one_of_the_recipe(tiny_config):
    """Otherwise two units of the warm-up would be set."""
    assert tiny_config.optim.warmup_steps == 2
    apply_override(tiny_config, "optim.warmup_percent=10")
    shared = parse_optim(tiny_config.optim.to_dict()).shared
    assert (shared.warmup_percent, shared.warmup_steps) == (10, 0)
    apply_override(tiny_config, "checkpoint_steps=3")
    assert (tiny_config.checkpoint_steps, tiny_config.checkpoint_percent) == (3, 0.0)
