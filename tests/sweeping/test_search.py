"""Searches: sampling, early stopping, failures, and going on after an interruption."""

import sys
import types

import pytest

from vit_jax.errors import Interrupted, UserError
from vit_jax.sweeping import local

search = pytest.importorskip("vit_jax.sweeping.search")

RECIPE = "tests/sweeping/recipe.py"
METRIC = "classification/digits/top1"

# Writes a config and metrics like a run whose metric is best at a learning rate of 0.5. The process
# waits before the end if its metric is bad, so that it can be stopped.
TRAIN = """
import json, pathlib, signal, sys, time
folder, lr, metric = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
folder.mkdir(exist_ok=True)
folder.joinpath("config.json").write_text("{}")
value = 1 - abs(lr - 0.5)
with folder.joinpath("metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 1, metric: value}) + "\\n")
    file.flush()
    if value < 0.2:
        time.sleep(60)
    file.write(json.dumps({"step": 2, metric: value}) + "\\n")
sys.exit(2 if value > 0.99 else 0)
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Returns a function that searches over given learning rates, without training."""

    def command(variant, workdir):
        folder, lr = f"{workdir}/{variant.name}", str(variant.config.optim.lr)
        return [sys.executable, "-S", "-c", TRAIN, folder, lr, METRIC]

    def searched(rates, trials, metric=METRIC, **options):
        values = iter(rates)

        def get_search(trial):
            lr = next(values) if "lr" not in trial.relative_params and not waiting(trial) else None
            return {"optim.lr": trial.suggest_float("lr", *((lr, lr) if lr else (0.0, 2.0)))}

        module = types.SimpleNamespace(get_search=get_search)
        monkeypatch.setattr(search, "recipe_module", lambda recipe: module)
        monkeypatch.setattr(local, "train_command", command)
        return search.search(RECIPE, (), str(tmp_path), metric=metric, trials=trials, **options)

    def waiting(trial):
        return bool(trial.user_attrs)

    return searched


def test_bad_trials_are_stopped_and_failed_ones_named(run):
    rates = (0.4, 0.45, 0.55, 0.6, 0.65, 1.5, 0.5)
    study = run(rates, len(rates))
    rows = search.table(study)
    assert rows[0] == ["trial", "state", METRIC, "lr"]
    assert rows[1][1:] in (["complete", "0.9500", "0.45"], ["complete", "0.9500", "0.55"])
    states = {row[3]: row[1] for row in rows[1:]}
    assert states["1.5"] == "pruned"
    assert states["0.5"] == "fail"
    assert len(rows) == 1 + len(rates)


def test_an_interrupted_trial_continues_in_its_folder(run, monkeypatch, tmp_path):
    interrupted = iter([True])
    train_one = search.train_one

    def once(variant, workdir, should_stop):
        if next(interrupted, False):
            raise Interrupted("x")
        return train_one(variant, workdir, should_stop)

    monkeypatch.setattr(search, "train_one", once)
    with pytest.raises(Interrupted):
        run((0.4,), 2)
    study = run((0.6,), 2)
    rows = search.table(study)
    assert sorted(row[0] for row in rows[1:]) == ["trial-0", "trial-1"]
    assert {row[3] for row in rows[1:]} == {"0.4", "0.6"}
    assert (tmp_path / "trial-0" / "config.json").exists()
    assert run((), 2).trials == study.trials  # complete: nothing is left to do


def test_wrong_searches(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown sampler 'tpee'; did you mean 'tpe'"):
        run((0.4,), 1, sampler="tpee")
    monkeypatch.setattr(search, "recipe_module", lambda recipe: types.SimpleNamespace())
    with pytest.raises(UserError, match=r"has no function get_search\(trial\)"):
        search.search(RECIPE, (), str(tmp_path), metric=METRIC, trials=1)


def test_a_metric_that_the_trials_lack(run):
    with pytest.raises(UserError, match=r"unknown metric of the trials .*; did you mean .*top1"):
        run((0.4,), 1, metric="classification/digits/top2")
