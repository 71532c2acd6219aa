"""Steps that draw a variant: FlexiViT's patch sizes, lengths of the data, budgets of tokens."""

import collections
import json

import numpy as np
import pytest

from tests.helpers import (
    assert_trees_equal,
    metrics_of,
    tiny_classifier,
    tiny_clip,
    train_in_two_parts,
)
from vit_jax import experiment
from vit_jax.data.draw import Draw
from vit_jax.errors import UserError
from vit_jax.evaluation import open_run
from vit_jax.experiment import build
from vit_jax.planning.compilation import make_plan, step_work
from vit_jax.planning.report import table
from vit_jax.planning.topologies import find_slice
from vit_jax.training.stages import make_stages, stage_config

SIZES = (4, 8)
NAMES = ["patch_size_4", "patch_size_8"]


@pytest.fixture
def config():
    return flexible()


def flexible():
    """Six steps with patches of 4 or 8 px, from a kernel of 6 px and positions of 3 x 3."""
    config = tiny_classifier()
    config.model.update(kernel_size=6, position_grid=(3, 3), position_resize="bilinear_antialias")
    config.model.depth, config.total_steps = 1, 6
    config.draw.model = {"patch_size": SIZES}
    return config


def by_hand():
    draw = Draw(0, (0, 1))
    return [NAMES[draw(number)] for number in range(1, 7)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    experiment.train(flexible(), folder)
    return folder


def test_every_step_draws_and_is_counted(whole_run):
    assert set(by_hand()) == set(NAMES)
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    counts = collections.Counter()
    for line, name in zip([x for x in lines if "loss" in x], by_hand(), strict=True):
        counts[name] += 1
        assert {k.removeprefix("drawn/"): v for k, v in line.items() if "drawn/" in k} == counts
        assert line[f"loss/{name}"] == line["loss"]


def test_interrupted_run_draws_the_same(config, whole_run, tmp_path):
    train_in_two_parts(config, tmp_path, step=3)
    for name in ("loss", *(f"drawn/{each}" for each in NAMES)):
        assert metrics_of(tmp_path, name) == metrics_of(whole_run, name)
    assert_trees_equal(open_run(tmp_path).params, open_run(whole_run).params)


def test_variants_share_state_and_data(config):
    config.draw.model.patch_size = (4, 8, 8)
    run = build(config)
    assert [each.name for each in run.variants] == NAMES
    assert [run.variants.frequency(each) for each in run.variants] == [1 / 3, 2 / 3]
    small, large = (each.experiment for each in run.variants)
    assert small.source is run.source
    assert small.optimizer is run.optimizer
    assert (small.spec.architecture.patch_size, large.spec.architecture.patch_size) == (4, 8)


def test_plain_model_keeps_kernel_and_positions(config):
    config.model.update(kernel_size=None, position_grid=None)
    (small, large) = (each.experiment.spec.architecture for each in build(config).variants)
    for tower in (small, large):
        assert (tower.kernel_size, tower.position_grid) == (4, (2, 2))


def test_lengths_of_the_data(config):
    config.draw.model = {"image_size": (8, (16, 8))}
    run = build(config)
    assert [each.name for each in run.variants] == ["image_size_8", "image_size_16x8"]
    sizes = [each.experiment.inputs.packed_size for each in run.variants]
    for number in range(1, 5):
        expected = sizes[run.variants.draw(number)]
        assert next(run.loader)["image"].shape == (32, expected)


def test_budget_of_tokens_sets_the_microbatches(config):
    config.mesh.data = 1
    config.token_budget = 40  # 32 examples of 4 patches or 1 patch
    steps = [each.experiment.microbatches.steps for each in build(config).variants]
    assert steps == [4, 1]
    config.grad_accum_steps = 2
    steps = [each.experiment.microbatches.steps for each in build(config).variants]
    assert steps == [4, 2]
    config.token_budget = 3
    with pytest.raises(UserError, match="token_budget=3: expected at least the 4 tokens of one"):
        _ = build(config).microbatches


def sequences():
    """A dual encoder whose images have at most 8 or 16 patches, and keep their aspect ratio."""
    config = tiny_clip()
    config.model.inputs = {"resize": "naflex", "interpolation": "bilinear"}
    config.model.image.update(pool="map", position_resize="bilinear_antialias")
    config.model.image.position_grid = (4, 4)
    config.draw.model = {"image": {"image_size": ((8, 16), (16, 16))}}
    config.total_steps, config.evals, config.mesh.data = 4, {}, 1
    config.token_budget = 64
    return config


def test_lengths_of_sequences():
    run = build(sequences())
    assert [each.name for each in run.variants] == ["image_size_8x16", "image_size_16x16"]
    assert [each.experiment.microbatches.steps for each in run.variants] == [4, 8]
    packed = [patches * 4 * 4 * 3 + 4 for patches in (8, 16)]
    for number in range(1, 5):
        expected = packed[run.variants.draw(number)]
        assert next(run.loader)["image"].shape == (32, expected)


@pytest.mark.release
def test_losses_do_not_depend_on_the_budget(tmp_path):
    for name, budget in (("cut", 64), ("whole", 0)):
        config = sequences()
        config.token_budget = budget
        config.hooks.samples = {"name": "samples", "count": 2, "every_steps": 1}
        experiment.train(config, tmp_path / name)
    cut, whole = (list(metrics_of(tmp_path / name).values()) for name in ("cut", "whole"))
    assert len(cut) == 4
    np.testing.assert_allclose(cut, whole, rtol=1e-4)


def test_a_stage_has_variants(config):
    config.stages.first = {"until_percent": 50, "draw": {"model": {"patch_size": (8, 2)}}}
    first, last = make_stages(build(config))
    names = [each.name for each in first.experiment.variants]
    assert names == ["patch_size_8", "patch_size_2"]
    assert [each.name for each in last.experiment.variants] == NAMES
    assert stage_config(config, "first").draw.model.patch_size == (8, 2)


def test_work_of_all_variants(config):
    work = {each.name: each for each in step_work(config)}
    assert list(work) == NAMES
    # Four patches and a class token, or one patch and a class token.
    ratio = work["patch_size_4"].flops / work["patch_size_8"].flops
    assert 1.5 < ratio < 4
    assert [each.fraction for each in work.values()] == [0.5, 0.5]


@pytest.mark.release
def test_plan_is_that_of_the_largest(config):
    plan = make_plan(config, find_slice("cpu-8"))
    other = make_plan(config, find_slice("cpu-8"), "patch_size_8")
    assert (plan.variant, other.variant) == ("patch_size_4", "patch_size_8")
    assert plan.model_flops_per_device == plan.draw[0]["model_flops_per_device"]
    assert other.model_flops_per_device == other.draw[1]["model_flops_per_device"]
    assert "patch_size_4 of 2" in table(plan)
    with pytest.raises(UserError, match="unknown variant 'patch_size_5'; did you mean 'patch_siz"):
        make_plan(config, find_slice("cpu-8"), "patch_size_5")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ({"model": {"patch_size": 4}}, "config.draw.model.patch_size=4: expected a list of values"),
        ({"model": {"patch_size": ()}}, "config.draw.model.patch_size=.*: expected a list"),
        ({"model": {"patch_siez": (4, 8)}}, "did you mean 'config.model.patch_size'"),
        ({"model": {"patch_size": (3, 4)}}, "patch_size=3 does not divide image_size"),
        ({"model": {"width": (16, 32)}}, "config.draw has other parameters than the run"),
        ({"batch_size": (32, 64)}, "config.draw.batch_size cannot change within a run"),
    ],
)
def test_mistakes(config, draw, message):
    config.draw = draw
    with pytest.raises(UserError, match=message):
        _ = build(config).loader


def test_draws_of_several_keys_combine(config):
    config.draw = {"model": {"patch_size": (4, 8), "patch_dropout": (0.0, 0.5)}}
    run = build(config)
    assert len(run.variants) == 4
    counts = np.bincount([run.variants.draw(number) for number in range(1, 401)])
    assert min(counts) > 60
