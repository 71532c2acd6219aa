"""Whole runs with a tiny recipe: reproducible, independent of the mesh, exactly resumable."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from tests.helpers import assert_trees_equal, metrics_of
from vit_jax import experiment
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.errors import Interrupted, UserError
from vit_jax.evaluation import open_run


def parameters(workdir):
    return open_run(workdir).params


def test_same_seed_gives_the_same_run_bit_for_bit(tiny_config, finished_run, tmp_path):
    metrics = experiment.train(tiny_config, tmp_path)
    assert metrics_of(tmp_path) == metrics_of(finished_run[0])
    assert list(metrics_of(tmp_path)) == list(range(1, 11))
    assert metrics == finished_run[1]


@pytest.mark.release
def test_another_seed_gives_another_run(tiny_config, finished_run, tmp_path):
    tiny_config.seed, tiny_config.evals = 1, {}
    experiment.train(tiny_config, tmp_path)
    assert metrics_of(tmp_path)[1] != metrics_of(finished_run[0])[1]


@pytest.mark.release
def test_one_device_and_eight_agree(tiny_config, finished_run, tmp_path):
    assert jax.device_count() == 8
    tiny_config.mesh.data = 1
    experiment.train(tiny_config, tmp_path)
    one, eight = metrics_of(tmp_path), metrics_of(finished_run[0])
    np.testing.assert_allclose(list(one.values()), list(eight.values()), rtol=1e-5)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.release)]
)
def test_interrupted_and_resumed_equals_uninterrupted(tiny_config, finished_run, tmp_path, number):
    """A signal after step 4 saves that step; the rest is the same bit for bit."""
    tiny_config.hooks.stop = {
        "name": "tests.training.components:SendSignal", "step": 4, "signal": int(number),
    }  # fmt: skip
    with pytest.raises(Interrupted, match="stopped and saved at step 4 of 10; the same command"):
        experiment.train(tiny_config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 4
    del tiny_config.hooks.stop
    metrics = experiment.train(tiny_config, tmp_path)
    assert metrics_of(tmp_path) == metrics_of(finished_run[0])
    assert_trees_equal(parameters(tmp_path), parameters(finished_run[0]))
    assert metrics == finished_run[1]


def test_resume_after_a_kill_rewrites_the_lines_since_the_checkpoint(
    tiny_config, finished_run, tmp_path
):
    """Killed at step 8 with a checkpoint of step 5: lines 6 to 8 are not there twice."""
    tiny_config.checkpoint_percent = 50.0
    tiny_config.hooks.kill = {"name": "tests.training.components:Crash", "step": 8}
    with pytest.raises(KeyboardInterrupt):
        experiment.train(tiny_config, tmp_path)
    assert max(metrics_of(tmp_path)) == 8
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # a line that the kill truncated
    del tiny_config.hooks.kill
    experiment.train(tiny_config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    assert metrics_of(tmp_path) == metrics_of(finished_run[0])


def test_a_complete_run_is_evaluated_again(tiny_config, finished_run, tmp_path):
    shutil.copytree(finished_run[0], tmp_path / "run")
    assert experiment.train(tiny_config, tmp_path / "run") == finished_run[1]
    assert open_run(tmp_path / "run").run(tiny_config.evals.to_dict()) == finished_run[1]


def test_moving_average_is_evaluated(tiny_config, tmp_path):
    """The average equals the one computed from the checkpoints of all steps."""
    tiny_config.mesh.data = 1
    tiny_config.optim.ema_decay = 0.7
    tiny_config.total_steps = 3
    tiny_config.checkpoint_steps, tiny_config.checkpoint_percent = 1, 0.0
    tiny_config.keep_checkpoints = 3
    tiny_config.evals = {}
    experiment.train(tiny_config, tmp_path)
    params = parameters(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    history = [checkpoints.restore_params(abstract, ema=False, step=n)[0] for n in (1, 2, 3)]
    average, _ = checkpoints.restore_params(abstract, ema=True, step=1)
    for step, newer in enumerate(history[1:], start=1):
        d = min(0.7, (1 + step) / (10 + step))
        average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, average, newer)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, average
    )


@pytest.mark.release
def test_temperature_stays_within_its_bounds(tiny_config, tmp_path):
    tiny_config.mesh.data = 1
    tiny_config.model.init_logit_scale = float(np.log(99.9))
    tiny_config.optim.update(lr=0.5, warmup_steps=0)
    tiny_config.total_steps = 3
    tiny_config.evals = {}
    experiment.train(tiny_config, tmp_path)
    scales = metrics_of(tmp_path, "logit_scale").values()
    assert max(scales) <= 100.01
    assert min(scales) >= 0.99


@pytest.mark.release
def test_siglip_learns_its_bias(tiny_config, tmp_path):
    tiny_config.mesh.data = 1
    tiny_config.objective.loss = "sigmoid"
    tiny_config.total_steps, tiny_config.evals = 3, {}
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
        ({"mesh.data": 9}, "data=9 x fsdp=1 x tensor=1 is 9, more than the 8 devices"),
        ({"data.train": "digit:train"}, "did you mean 'digits'"),
        ({"data.augment": "afine"}, "unknown augmentation 'afine'; did you mean 'affine'"),
        ({"data.templates": ("no slot",)}, "expected exactly one {}"),
        ({"objective.loss": "softmx"}, "did you mean 'softmax'"),
        ({"objective.name": "contrast"}, "did you mean 'contrastive'"),
        ({"eval_batch_size": 0}, "eval_batch_size=0: expected 1 or more"),
        ({"model.text.vocab_size": 100}, "vocab_size=100: expected at least 258"),
        ({"optim.warmup_steps": 10}, "not shorter than the run"),
        ({"optim.warmup_percent": 3.0}, "more than one unit is set"),
        ({"non_finite": "skipp"}, "did you mean 'skip'"),
    ],
)
def test_refused_before_anything_is_written(tiny_config, tmp_path, change, message):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        experiment.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("evaluator", "block", "message"),
    [
        ("zeroshoot", {}, "did you mean 'zeroshot'"),
        ("zeroshot", {"data": "digits:tset"}, "did you mean 'test'"),
        ("zeroshot", {"data": "digits:test", "template": "{}"}, r"did you mean '.*templates'"),
        ("zeroshot", {}, r"config\.evals\.zeroshot\.x\.data is not set"),
        ("probe", {"train": "digits:train", "test": "emoji:train"}, "different classes"),
    ],
)
def test_evaluation_blocks_are_checked_first(tiny_config, tmp_path, evaluator, block, message):
    tiny_config.evals[evaluator] = {"x": block}
    with pytest.raises(UserError, match=message):
        experiment.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_opening_what_is_not_a_run(tmp_path, finished_run):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        open_run(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 3 .*found \[10\]"):
        open_run(finished_run[0], step=3)
