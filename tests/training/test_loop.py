"""Whole runs on a tiny recipe: reproducible, the same on any mesh, exactly resumable."""

import json
import signal

import jax
import numpy as np
import pytest

from tests import helpers
from vit_jax import experiment
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.errors import Interrupted, UserError
from vit_jax.evaluation import open_run

COMPONENTS = "tests.training.components"
curve = helpers.metrics_of


def parameters(workdir, step=None):
    return open_run(workdir, step=step).params


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """One undisturbed run that the others are compared with."""
    from tests.helpers import tiny_clip

    workdir = tmp_path_factory.mktemp("whole")
    return workdir, experiment.train(tiny_clip(), workdir)


def test_same_seed_same_curve_bit_for_bit(tiny_config, whole_run, tmp_path):
    experiment.train(tiny_config, tmp_path)
    assert curve(tmp_path) == curve(whole_run[0])
    assert len(curve(tmp_path)) == 10


@pytest.mark.slow
def test_another_seed_another_curve(tiny_config, whole_run, tmp_path):
    tiny_config.seed = 1
    experiment.train(tiny_config, tmp_path)
    assert curve(tmp_path)[1] != curve(whole_run[0])[1]


def test_one_device_and_eight_agree(tiny_config, whole_run, tmp_path):
    assert jax.device_count() == 8
    tiny_config.mesh.data = 1
    experiment.train(tiny_config, tmp_path)
    one, eight = curve(tmp_path), curve(whole_run[0])
    np.testing.assert_allclose(list(one.values()), list(eight.values()), rtol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_resumed_equals_uninterrupted(tiny_config, whole_run, tmp_path, number):
    """A signal during step 4 saves that step; the rest is the same bit for bit."""
    tiny_config.hooks.stop = {"name": f"{COMPONENTS}:SendSignal", "step": 4, "signal": int(number)}
    with pytest.raises(Interrupted, match="the same command continues"):
        experiment.train(tiny_config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 4
    del tiny_config.hooks["stop"]
    metrics = experiment.train(tiny_config, tmp_path)
    assert curve(tmp_path) == curve(whole_run[0])
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path), parameters(whole_run[0]))
    assert metrics == whole_run[1]


def test_resume_after_a_kill_rewrites_the_lines_since_the_checkpoint(
    tiny_config, whole_run, tmp_path
):
    """Killed at step 8 with a checkpoint of step 5: lines 6 to 8 are not there twice."""
    tiny_config.checkpoint_percent = 50.0
    tiny_config.hooks.crash = {"name": f"{COMPONENTS}:Crash", "step": 8}
    with pytest.raises(KeyboardInterrupt):
        experiment.train(tiny_config, tmp_path)
    del tiny_config.hooks["crash"]
    assert max(curve(tmp_path)) == 8
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # a line that the kill cut short
    experiment.train(tiny_config, tmp_path)
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 11))
    assert curve(tmp_path) == curve(whole_run[0])


def test_a_finished_run_is_evaluated_again(tiny_config, whole_run):
    assert experiment.train(tiny_config, whole_run[0]) == whole_run[1]
    assert open_run(whole_run[0]).run(tiny_config.evals.to_dict()) == whole_run[1]


@pytest.mark.slow
def test_moving_average_is_what_is_evaluated(tiny_config, tmp_path):
    """The average equals the one computed from the checkpoints of every step."""
    tiny_config.optim.ema_decay = 0.7
    tiny_config.total_steps = 4
    tiny_config.checkpoint_percent = 25.0
    tiny_config.keep_checkpoints = 4
    experiment.train(tiny_config, tmp_path)
    run = open_run(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), run.params
    )
    history = [checkpoints.restore_params(abstract, ema=False, step=n)[0] for n in range(1, 5)]
    average, _ = checkpoints.restore_params(abstract, ema=True, step=1)
    for step, params in enumerate(history[1:], start=1):
        d = min(0.7, (1 + step) / (10 + step))
        average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, average, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run.params, average
    )


@pytest.mark.slow
def test_temperature_stays_in_its_bounds(tiny_config, tmp_path):
    tiny_config.model.init_logit_scale = float(np.log(99.9))
    tiny_config.optim.lr = 0.5
    tiny_config.total_steps = 5
    experiment.train(tiny_config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scales = [line["logit_scale"] for line in lines if "logit_scale" in line]
    assert max(scales) <= 100.01
    assert min(scales) >= 0.99


@pytest.mark.slow
def test_siglip_learns_its_bias(tiny_config, tmp_path):
    tiny_config.objective.loss = "sigmoid"
    with pytest.raises(UserError, match=r"needs config\.model\.init_logit_bias"):
        experiment.train(tiny_config, tmp_path / "refused")
    tiny_config.model.init_logit_bias = -10.0
    tiny_config.model.init_logit_scale = float(np.log(10.0))
    experiment.train(tiny_config, tmp_path / "run")
    assert float(parameters(tmp_path / "run")["logit_bias"]) != -10.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 30}, "batch_size=30 is not a multiple of the 8 devices; try 24 or 32"),
        ({"mesh.data": 9}, "data=9 x fsdp=1 x tensor=1 is 9, there are 8"),
        ({"data.train": "digit:train"}, "did you mean 'digits'"),
        ({"data.augment": "afine"}, "unknown transform 'afine'; did you mean 'affine'"),
        ({"data.templates": ("no slot",)}, "expected exactly one {}"),
        ({"objective.loss": "softmx"}, "did you mean 'softmax'"),
        ({"objective.name": "contrast"}, "did you mean 'contrastive'"),
        ({"eval_batch_size": 12}, "eval_batch_size=12 is not a multiple"),
        ({"model.text.vocab_size": 100}, "vocab_size=100: expected at least 258"),
        ({"optim.warmup_steps": 10}, "not shorter than the run"),
        ({"optim.warmup_percent": 3.0}, "more than one unit is set"),
    ],
)
def test_refused_before_anything_is_written(tiny_config, tmp_path, change, message):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        experiment.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "block", "message"),
    [
        ("zeroshoot", {}, "did you mean 'zeroshot'"),
        ("zeroshot", {"data": "digits:tset"}, "did you mean 'test'"),
        ("zeroshot", {"data": "digits:test", "template": "{}"}, "unexpected keyword"),
        ("zeroshot", {}, r"config\.evals\.zeroshot\.x: .*data"),
        ("probe", {"train": "digits:train", "test": "emoji:train"}, "different classes"),
    ],
)
def test_evaluation_blocks_are_checked_first(tiny_config, tmp_path, kind, block, message):
    tiny_config.evals[kind] = {"x": block}
    with pytest.raises(UserError, match=message):
        experiment.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluating_what_is_not_a_run(tmp_path, whole_run):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        open_run(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 3 .*found \[10\]"):
        open_run(whole_run[0], step=3)
