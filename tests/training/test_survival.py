"""Faults of a run: what it survives, what it refuses, what it tells."""

import json
import multiprocessing
import signal
import time

import numpy as np
import pytest

from tests import helpers
from tests.training.components import pixel_sum
from vit_jax import experiment, workdir
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.data.loader import Loader
from vit_jax.errors import Interrupted, UserError
from vit_jax.tracking.jsonl import JsonLines
from vit_jax.training import resume
from vit_jax.training.hooks import non_finite, watchdog
from vit_jax.training.hooks.non_finite import NonFinite, Rollback

BAD = 4  # number of the batch that gives no finite loss


@pytest.fixture
def config():
    """One device, a checkpoint at every other step, no evaluation."""
    config = helpers.tiny_clip()
    config.mesh.data = 1
    config.evals = {}
    config.checkpoint_steps = 2
    config.keep_checkpoints = 20
    return config


steps_of = helpers.metrics_of


def state_of(config, folder, step):
    abstract = experiment.build(config).abstract_state
    return Checkpoints(folder).restore(step, abstract)[0]


assert_same = helpers.assert_trees_equal


@pytest.fixture
def poisoned(config):
    """The loss of batch number `BAD` is NaN, recognised by its pixels."""
    loader = experiment.build(config).loader
    bad = [next(loader) for _ in range(BAD)][-1]
    config.objective = {
        "name": "tests.training.components:PoisonedContrastive",
        "poison": pixel_sum(bad),
    }


def test_stops_with_a_dump_of_the_step(config, poisoned, tmp_path):
    """Although only every tenth step is logged."""
    config.log_steps = 10
    with pytest.raises(UserError, match=r"step 4 is not finite \(loss nan.*non_finite_step_4.json"):
        experiment.train(config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 2
    dump = json.loads((tmp_path / "non_finite_step_4.json").read_text())
    assert dump["loss"] == "nan"
    assert dump["examples"] == [96, 128]
    norms = dump["per_layer_grad_norms"]
    assert set(norms.values()) == {"nan"}
    # Stacked layers one by one.
    assert sum(name.endswith("[1]") for name in norms) > 4
    assert dump["rows"] == experiment.build(config).loader.rows(96, 128)
    assert len(set(dump["rows"])) == 32


def test_skip_leaves_everything_as_it_was(config, poisoned, tmp_path):
    config.non_finite = "skip"
    config.checkpoint_steps = 1
    experiment.train(config, tmp_path)
    before, after = state_of(config, tmp_path, 3), state_of(config, tmp_path, 4)
    assert_same(before.params, after.params)
    assert_same(before.opt_state, after.opt_state)
    assert int(after.step) == 4
    later = state_of(config, tmp_path, 5)
    assert not np.array_equal(later.params["logit_scale"], after.params["logit_scale"])
    assert steps_of(tmp_path, "non_finite_batches") == {n: float(n >= 4) for n in range(1, 11)}


def test_rollback_continues_without_the_batch(config, poisoned, tmp_path, monkeypatch):
    """The run equals one that never had the batch, also when it is stopped on the way."""
    config.non_finite = "rollback"
    experiment.train(config, tmp_path / "whole")
    assert steps_of(tmp_path / "whole", "non_finite_batches")[10] == 1.0
    config.hooks.stop = {
        "name": "tests.training.components:SendSignal",
        "step": 6,
        "signal": int(signal.SIGTERM),
    }
    with pytest.raises(Interrupted):
        experiment.train(config, tmp_path / "stopped")
    del config.hooks["stop"]
    experiment.train(config, tmp_path / "stopped")
    assert steps_of(tmp_path / "stopped") == steps_of(tmp_path / "whole")
    assert steps_of(tmp_path / "stopped", "non_finite_batches")[10] == 1.0

    class WithoutBad(Loader):
        drawn = 0

        def __next__(self):
            self.drawn += 1
            return super().__next__() if self.drawn != BAD else (super().__next__(), next(self))[1]

    monkeypatch.setattr(experiment, "Loader", WithoutBad)
    config.objective = {"name": "contrastive"}
    experiment.train(config, tmp_path / "never")
    assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "never")
    assert_same(state_of(config, tmp_path / "whole", 10), state_of(config, tmp_path / "never", 10))


class FakeRun:
    """The part of a run that the policy reads; it records dumps."""

    def __init__(self, monkeypatch):
        self.bad_batches, self.batch_number, self.dumped = set(), 0, []
        record = lambda run, step, batch, metrics: self.dumped.append((step, batch))  # noqa: E731
        monkeypatch.setattr(non_finite, "write_dump", record)

    def step(self, policy, step, batch, finite):
        self.batch_number = batch
        policy.after_step(self, step, failing(finite))


def failing(finite):
    return {"finite": np.bool_(finite), "loss": np.float32(1), "grad_norm": np.float32(1)}


def test_consecutive_skips_have_a_limit(monkeypatch):
    run, policy = FakeRun(monkeypatch), NonFinite("skip", 2)
    policy.on_start(run)
    for step, finite in enumerate([False, False, True, False, False, True], start=1):
        run.step(policy, step, step + 100, finite)
    for step in (7, 8, 9):
        run.step(policy, step, step + 100, False)
    with pytest.raises(UserError, match=r"step 9 is not finite \(failure 3 in a row\)"):
        policy.settle()
    assert run.bad_batches == {101, 102, 104, 105, 107, 108, 109}
    assert run.dumped[-1] == (9, 109)


def test_rollbacks_to_one_step_have_a_limit(monkeypatch):
    run, policy = FakeRun(monkeypatch), NonFinite("rollback", 2)
    policy.on_start(run)
    for batch in (5, 6):
        run.step(policy, 3, batch, False)
        with pytest.raises(Rollback):
            policy.settle()
    run.step(policy, 3, 7, False)
    with pytest.raises(UserError, match="in a row"):
        policy.settle()


def test_unknown_policy(config, tmp_path):
    config.non_finite = "skipp"
    with pytest.raises(UserError, match="did you mean 'skip'"):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def started(config, tmp_path):
    """A workdir that has seen a start."""
    workdir.save_config(tmp_path, experiment.build(config).resolved_config())
    return tmp_path


def check(config, folder):
    resume.check_resumable(folder, experiment.build(config))


def test_a_changed_config_is_told(config, started, caplog):
    config.optim.lr = 1.0
    config.log_steps = 5
    with caplog.at_level("WARNING", "vit_jax"):
        check(config, started)
    assert "Changed since the last start: log_steps: 1 -> 5." in caplog.text
    assert "Changed since the last start: optim.lr: 0.003 -> 1.0." in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.image.width": 64}, r"model\.image\.width: 32 -> 64\).*saved state differs"),
        ({"optim.ema_decay": 0.9}, r"saved state differs \(ema/.*: absent -> float32"),
        ({"optim.name": "muon"}, r"optim\.name: adamw -> muon"),
        ({"batch_size": 64}, r"batch_size: 32 -> 64\).*data position"),
        ({"seed": 1}, r"seed: 0 -> 1"),
        ({"data.train": "digits:test"}, r"digits:train -> digits:test"),
    ],
)
def test_a_config_for_another_state_is_refused(config, started, change, message):
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        check(config, started)


def hold(folder, ready):
    with workdir.locked(folder):
        ready.set()
        time.sleep(60)


def test_two_runs_in_one_workdir(tmp_path):
    """The second is refused; when the first was killed, it is not."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    owner = context.Process(target=hold, args=(tmp_path, ready))
    owner.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(UserError, match=rf"in use by process {owner.pid} on .*two runs"),
            workdir.locked(tmp_path),
        ):
            pass
    finally:
        owner.kill()
        owner.join()
    assert (tmp_path / workdir.LOCK_FILE).exists()
    with workdir.locked(tmp_path):
        pass
    assert not (tmp_path / workdir.LOCK_FILE).exists()


def test_a_workdir_in_use_is_left_alone(config, tmp_path):
    with workdir.locked(tmp_path), pytest.raises(UserError, match="is in use by process"):
        experiment.train(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_watchdog_says_where_a_process_hangs(tmp_path):
    with (tmp_path / "stacks").open("w+") as file:
        with watchdog.Watchdog(0.2, file) as dog:
            dog.saw(7)
            sleep_long_enough(0.7)
            dog.saw(8)
        file.seek(0)
        report = file.read()
    assert 1 <= report.count("has completed no step for") <= 3
    assert "process 0 on " in report
    assert "since step 7; stacks of its threads:" in report
    assert "in sleep_long_enough" in report


def sleep_long_enough(seconds):
    time.sleep(seconds)


def test_a_run_that_goes_on_is_not_reported(tmp_path):
    with (tmp_path / "stacks").open("w+") as file, watchdog.Watchdog(0.5, file) as dog:
        for step in range(12):
            dog.saw(step)
            time.sleep(0.1)
        file.seek(0)
        assert file.read() == ""


def test_stopped_before_the_first_step(config, tmp_path):
    config.hooks.stop = {
        "name": "tests.training.components:SendSignal",
        "step": 0,
        "signal": int(signal.SIGTERM),
    }
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="before the first step"):
        experiment.train(config, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before


def test_lost_permission_is_reported(config, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "x/metrics.jsonl")

    monkeypatch.setattr(JsonLines, "write_scalars", refuse)
    with pytest.raises(UserError, match=r"x/metrics\.jsonl: Permission denied; the run has stop"):
        experiment.train(config, tmp_path)


def test_names_in_a_config_write_nowhere_else(config, tmp_path):
    """Names of evaluations become names of metrics, never of files; dots are refused before."""
    config.evals.zeroshot = {"/escape": {"data": "digits:test[:40]"}}
    config.total_steps = 3
    config.optim.warmup_steps = 0
    experiment.train(config, tmp_path / "a" / "b")
    assert "zeroshot//escape/top1" in (tmp_path / "a/b/metrics.jsonl").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
