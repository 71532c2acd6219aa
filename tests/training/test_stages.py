"""Curricula: stages with smaller images or fewer tokens in one run."""

import jax
import numpy as np
import pytest

from tests.helpers import assert_trees_equal, metrics_of, tiny_clip, train_in_two_parts
from vit_jax import experiment
from vit_jax.errors import UserError
from vit_jax.evaluation import open_run
from vit_jax.experiment import build
from vit_jax.training.stages import make_stages, stage_config


@pytest.fixture
def config():
    return staged_clip()


def staged_clip():
    """Four steps: two on images of 4 px with half of their patches, two on whole images of 8."""
    config = tiny_clip()
    config.total_steps, config.optim.warmup_steps = 4, 1
    config.model.image.patch_size = 2
    config.evals = {}
    config.stages.small = {
        "until_percent": 50,
        "model": {"image": {"image_size": 4, "patch_dropout": 0.5}},
    }
    return config


def test_stages_share_state_and_data_and_have_their_own_images(config):
    run = build(config)
    stages = make_stages(run)
    assert [(x.name, x.end, x.size) for x in stages] == [("small", 2, (4, 4)), ("", 4, (8, 8))]
    assert stages[-1].experiment is run
    small = stages[0].experiment
    tower = small.spec.architecture.image
    assert (tower.position_grid, tower.patch_dropout) == ((4, 4), 0.5)
    assert small.optimizer is run.optimizer
    assert small.source is run.source
    images = next(small.loader)["image"]
    assert images.shape == (32, 4 * 4 * 3)
    np.testing.assert_array_equal(next(small.loader)["tokens"], _batch(run, 1)["tokens"])


def _batch(run, number):
    run.loader.set_state({"examples": number * run.config.batch_size})
    return next(run.loader)


@pytest.mark.parametrize(
    "step",
    [1, pytest.param(2, marks=pytest.mark.release), pytest.param(3, marks=pytest.mark.release)],
)
def test_interrupted_in_any_stage_equals_uninterrupted(config, whole_run, tmp_path, step):
    train_in_two_parts(config, tmp_path, step)
    assert metrics_of(tmp_path) == metrics_of(whole_run)
    assert_trees_equal(open_run(tmp_path).params, open_run(whole_run).params)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    experiment.train(staged_clip(), folder)
    return folder


@pytest.mark.release
def test_run_equals_steps_by_hand(config, whole_run):
    run = build(config)
    state, stages = run.init_state(), make_stages(run)
    for step in range(config.total_steps):
        stage = next(x for x in stages if step < x.end).experiment
        stage.loader.set_state({"examples": step * config.batch_size})
        state, _ = stage.train_step(state, next(stage.loader))
    assert_trees_equal(jax.device_get(state.params), jax.device_get(open_run(whole_run).params))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"model": {"image": {"width": 16}}}, "config.stages.x: expected a block with until_perc"),
        ({"until_percent": 100}, "config.stages.x: expected a block with until_percent"),
        ({"until_percent": 1.0}, "config.stages.x has no step: the run has 4 steps"),
        ({"until_percent": 50, "batch_size": 64}, "config.stages.x.batch_size cannot change"),
        ({"until_percent": 50, "data": {"train": "a"}}, "stages.x.data.train cannot change"),
        (
            {"until_percent": 50, "compute": {"dtyp": "x"}},
            "stages.x: unknown config key 'config.compute.dtyp'",
        ),
        (
            {"until_percent": 50, "model": {"image": {"depth": 3}}},
            r"config.stages.x has other parameters than the run: image/\S+ is float32\[3, ",
        ),
    ],
)
def test_mistakes(config, block, message):
    config.stages = {"x": block}
    with pytest.raises(UserError, match=message):
        make_stages(build(config))


def test_unknown_stage_of_a_plan(config):
    with pytest.raises(UserError, match="unknown stage 'smal'; did you mean 'small'"):
        stage_config(config, "smal")
