"""A whole run in a bucket of a local server, see `tests.bucket_servers`."""

import json

import pytest

from tests.helpers import ROOT, assert_trees_equal, run_command
from vit_jax.checkpoint.manager import Checkpoints, set_damaged_aside, step_numbers
from vit_jax.data.preparation import prepare
from vit_jax.errors import UserError
from vit_jax.paths import as_path
from vit_jax.pretrained.model import create_model
from vit_jax.workdir import locked

pytest_plugins = ["tests.bucket_servers"]

RECIPE = ROOT / "tests" / "parallel" / "recipe.py"


def train(workdir, data, accident="", code=0):
    """Trains on prepared digits; an accident is a key of `recipe.ACCIDENTS`."""
    return run_command(
        "train", "--config", f"{RECIPE}:{accident}", "--workdir", workdir,
        f"--config.data.train=tar:{data}/*.tar", code=code,
    )  # fmt: skip


def metrics(workdir):
    """Lines of `metrics.jsonl`."""
    text = (as_path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_is_killed_resumed_and_used(gs_bucket, tmp_path):
    data, run = f"{gs_bucket}/data", f"{gs_bucket}/runs/digits"
    prepare("digits:train[:200]", data, format="tar", shards_count=2)
    train(tmp_path / "local", data)
    train(run, data, "kill_all", code=-9)
    assert step_numbers(as_path(run) / "checkpoints") == [4]
    assert "Resuming" in train(run, data).stderr
    lines = metrics(run)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses == [line["loss"] for line in metrics(tmp_path / "local") if "loss" in line]
    assert len(losses) == 10
    assert list((as_path(run) / "tensorboard").iterdir())

    last = {key: value for key, value in lines[-1].items() if key != "step"}
    assert json.loads(run_command("evaluate", "--workdir", run, "--json").stdout) == last
    converted = ("--output", tmp_path / "converted", "--to", "vit_jax")
    run_command("convert", "--workdir", run, *converted)
    models = [create_model(None, weights) for weights in (tmp_path / "converted", run)]
    assert_trees_equal(models[0].params, models[1].params)
    assert f"{losses[-1]:.4f}" in run_command("report", run).stdout


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(gs_bucket, tmp_path):
    data, run = f"{gs_bucket}/data", as_path(gs_bucket) / "run"
    prepare("digits:train[:100]", data, format="tar", shards_count=1)
    train(run, data)
    checkpoints = run / "checkpoints"
    newest, before = sorted(step_numbers(checkpoints), reverse=True)
    damaged = next((checkpoints / str(newest)).glob("params/d/*"))
    damaged.write_bytes(b"x" * damaged.stat().length)
    set_damaged_aside(run)
    assert step_numbers(checkpoints) == [before]
    assert (checkpoints / f"{newest}.damaged" / "checksums.json").exists()
    assert Checkpoints(run).latest_step() == before


def test_a_second_run_on_this_machine_is_refused(gs_bucket):
    with locked(f"{gs_bucket}/run"):
        with pytest.raises(UserError, match="is in use by process"), locked(f"{gs_bucket}/run"):
            pass
        with locked(f"{gs_bucket}/another"):
            pass
