"""Commands in separate processes: training, evaluation, errors on one line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT, fast_flags, metrics_of, run_command
from vit_jax.data.sources import open_source

RECIPE = "configs/clip_emoji.py"
# A smaller model, which learns part of the recipe in 400 steps.
QUICK = (
    "--config.model.image.patch_size=8",
    "--config.model.image.depth=2",
    "--config.model.image.patch_dropout=0",
    "--config.model.text.depth=1",
    "--config.batch_size=128",
)


def train(workdir, steps):
    """Trains the smaller model; returns the finished process."""
    return run_command(
        "train", "--config", RECIPE, "--workdir", workdir, f"--config.total_steps={steps}", *QUICK
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workdir and process of a run of a few steps."""
    workdir = tmp_path_factory.mktemp("clip_emoji")
    return workdir, train(workdir, 4)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Workdir of a run that learns part of the recipe."""
    workdir = tmp_path_factory.mktemp("clip_emoji_learned")
    train(workdir, 400)
    return workdir


def last_metrics(workdir):
    metrics = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    metrics.pop("step")
    return metrics


@pytest.mark.release
def test_recipe_learns_names_outside_its_training_set(learned):
    """At least ten times chance on held-out names."""
    metrics = last_metrics(learned)
    source = open_source("emoji:heldout_names")
    chance = 1 / len(np.unique(source.labels))
    assert metrics["zeroshot/heldout_names/top1"] >= 10 * chance
    assert metrics["zeroshot/all_names/top5"] >= 10 * 5 / 1923
    losses = list(metrics_of(learned).values())
    assert losses[-1] < 0.8 * losses[0]


def test_files_and_output_of_a_run(trained):
    workdir, done = trained
    assert {p.name for p in workdir.iterdir()} == {
        "checkpoints", "config.json", "metrics.jsonl", "predictions", "provenance", "result.json",
        "tensorboard", "tokenizer.json",
    }  # fmt: skip
    assert "zeroshot/heldout_names/top1" in done.stdout
    assert "Total: " in done.stderr  # the model table
    assert "examples/s" in done.stderr
    assert list((workdir / "tensorboard").iterdir())


def test_evaluate_prints_the_metrics_of_training(finished_run):
    workdir, metrics = finished_run
    table = run_command("evaluate", "--workdir", workdir).stdout
    lines = dict(line.split() for line in table.splitlines())
    assert list(lines) == list(metrics) == list(last_metrics(workdir))
    for name, value in metrics.items():
        assert float(lines[name]) == pytest.approx(value, abs=1e-4)


def test_classifies_an_image_of_the_user(finished_run, tmp_path):
    source = open_source("emoji:train")
    Image.fromarray(source[0]["image"]).resize((200, 150)).save(tmp_path / "cat.png")
    labels = "a cat,a rocket,a pizza"
    args = ("--workdir", finished_run[0], "--image", tmp_path / "cat.png", "--labels", labels)
    found = json.loads(run_command("evaluate", *args, "--json").stdout)
    assert set(found) == {"a cat", "a rocket", "a pizza"}
    assert abs(sum(found.values()) - 1) < 1e-6
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize(
    "run", ["finished_run", pytest.param("learned", marks=pytest.mark.release)]
)
def test_evaluates_a_folder_of_the_user(run, tmp_path, request):
    """Training images with their names: a model that has learned classifies some correctly."""
    workdir = request.getfixturevalue(run)
    workdir = workdir[0] if run == "finished_run" else workdir
    source = open_source("emoji:train")
    lines = []
    for i in range(0, 400, 20):
        Image.fromarray(source[i]["image"]).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png\t{source[i]['name']}\n")
    (tmp_path / "names.tsv").write_text("".join(lines))
    args = ("--workdir", workdir, "--images", tmp_path, "--names", tmp_path / "names.tsv")
    found = json.loads(run_command("evaluate", *args, "--json").stdout)
    metrics = ("top1", "top5", "mean_per_class_recall", "ece")
    assert set(found) == {f"zeroshot/images/{metric}" for metric in metrics}
    if run == "learned":
        assert found["zeroshot/images/top5"] >= 0.4  # chance: 5 / 20 = 0.25


def test_neither_tensorflow_nor_torch_nor_the_network(tmp_path):
    """A complete run without network access; then the imported modules are checked."""
    script = f"""
import socket, sys
def closed(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = socket.create_connection = closed
from tests.helpers import tiny_clip
from vit_jax.experiment import train
config = tiny_clip()
config.evals.zeroshot = {{"x": {{"data": "emoji:heldout_names[:20]"}}}}
train(config, {str(tmp_path / "run")!r})
import vit_jax.evaluate
print(sorted({{m.partition(".")[0] for m in sys.modules}} & {{"tensorflow", "torch"}}))
"""
    env = {**os.environ, "XLA_FLAGS": fast_flags()}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, text=True, capture_output=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_sigterm_saves_a_checkpoint(tmp_path):
    args = [
        sys.executable, "-m", "vit_jax.train", "--config", "tests/launch/recipe.py",
        "--workdir", str(tmp_path / "r"), "--config.total_steps=100000",
    ]  # fmt: skip
    env = {**os.environ, "XLA_FLAGS": fast_flags()}
    with subprocess.Popen(args, cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE) as process:
        metrics = tmp_path / "r" / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75
    assert stderr.splitlines()[-1].startswith("stopped and saved at step ")
    assert stderr.splitlines()[-1].endswith("the same command continues from there")
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()]


def assert_one_line(done, message):
    """The command prints one line with the error, no traceback."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", RECIPE], "--workdir"),
        (["--config", "configs/clip_emojy.py"], "did you mean 'configs/clip_emoji.py'"),
        (["--config", RECIPE, "--config.optim.lrr=1"], "did you mean 'config.optim.lr'"),
        (["--confg", RECIPE], "Did you mean: config"),
        (["--config", RECIPE, "extra"], "unexpected argument 'extra'"),
    ],
)
def test_wrong_training_commands(args, message, tmp_path):
    workdir = [] if message == "--workdir" else ["--workdir", str(tmp_path / "run")]
    assert_one_line(run_command("train", *args, *workdir, code=2), message)
    assert not (tmp_path / "run").exists()


def test_wrong_evaluation_command(finished_run):
    args = ("--workdir", finished_run[0], "--image", "absent.png", "--labels", "a,b")
    assert_one_line(run_command("evaluate", *args, code=2), "no image at absent.png")
