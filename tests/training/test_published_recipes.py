"""Each published recipe builds, and its very step traces, at its full size and on eight devices."""

import importlib
import pathlib

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax.data.augment import parse_augmentation
from vit_jax.training import assembly

ROOT = pathlib.Path(__file__).parents[2]
# Those that name a slice; the others run on embedded data.
RECIPES = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if "--topology" in path.read_text()
)
# Of these another recipe traces the same at a smaller size.
LARGER = ("clip_vit_l14", "mae_vit_l16", "swin_b")
STAGES = [
    *(pytest.param(r, "", marks=[pytest.mark.slow] if r in LARGER else []) for r in RECIPES),
    ("vit_b16_augreg", "finetune"),
    ("deit3_b16", "finetune"),
]


def test_which_recipes_there_are():
    assert len(RECIPES) == 18


@pytest.mark.parametrize(("name", "arg"), STAGES)
def test_recipe_traces(name, arg):
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    config_lib.validate(config)
    parse_augmentation(config.data.augment, size=config.model.get("image_size", 224))
    config.mesh.fsdp = min(config.mesh.fsdp, jax.device_count())
    config.compute.scan = True  # one trace of a block, whatever the depth
    mesh = assembly.build_mesh(config)
    assembly.check_batch_sizes(config, mesh)
    program = assembly.build_program(config, mesh, warmup_steps=1, total_steps=100, resumed=True)
    batch = assembly.batch_shapes(config)
    state, metrics = program.step.eval_shape(program.abstract, batch, *program.abstract_constants)
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(
        lambda x: x.shape, program.abstract
    )
    assert metrics["loss"].shape == ()
