"""Faults of a run: non-finite losses, changed configs, concurrent runs, hangs, file errors."""

import json
import multiprocessing
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_trees_equal, metrics_of, tiny_clip
from tests.training.components import pixel_sum
from vit_jax import experiment, workdir
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.data.loader import Loader
from vit_jax.errors import Interrupted, UserError
from vit_jax.experiment import build
from vit_jax.tracking.jsonl import JsonLines
from vit_jax.training import resume
from vit_jax.training.hooks.non_finite import NonFinite, Rollback
from vit_jax.training.hooks.watchdog import Watchdog
from vit_jax.training.run import Run

BAD = 4  # number of the batch whose loss is not finite


def tiny_run():
    """One device, a checkpoint every second step, no evaluation."""
    config = tiny_clip()
    config.mesh.data = 1
    config.evals = {}
    config.checkpoint_steps = 2
    config.keep_checkpoints = 20
    return config


@pytest.fixture
def config():
    return tiny_run()


@pytest.fixture(scope="module")
def poison():
    """Sum of the pixels of batch `BAD`."""
    loader = build(tiny_run()).loader
    return pixel_sum([next(loader) for _ in range(BAD)][-1])


@pytest.fixture
def poisoned(config, poison):
    """Config of a run in which the loss of batch `BAD` is NaN."""
    config.objective = {"name": "tests.training.components:PoisonedContrastive", "poison": poison}
    return config


def state_of(config, folder, step):
    """State in the checkpoint of a step."""
    abstract = build(config, data=False).abstract_state
    return Checkpoints(folder).restore(step, abstract)[0]


def test_stop_writes_a_dump_of_the_step(poisoned, tmp_path):
    """Also between two logged steps."""
    poisoned.log_steps = 10
    with pytest.raises(UserError, match=r"step 4 is not finite \(loss nan.*non_finite_step_4.json"):
        experiment.train(poisoned, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 2
    dump = json.loads((tmp_path / "non_finite_step_4.json").read_text())
    assert dump["loss"] == "nan"
    assert dump["examples"] == [96, 128]
    norms = dump["per_layer_grad_norms"]
    assert set(norms.values()) == {"nan"}
    assert sum(name.endswith("[1]") for name in norms) > 4  # each layer of a stack
    assert dump["rows"] == build(poisoned).loader.rows(96, 128)
    assert len(set(dump["rows"])) == 32


@pytest.mark.release
def test_skip_changes_nothing_but_the_step(poisoned, tmp_path):
    poisoned.non_finite = "skip"
    poisoned.checkpoint_steps = 1
    experiment.train(poisoned, tmp_path)
    before, after = state_of(poisoned, tmp_path, 3), state_of(poisoned, tmp_path, 4)
    assert_trees_equal(before.params, after.params)
    assert_trees_equal(before.opt_state, after.opt_state)
    assert int(after.step) == 4
    later = state_of(poisoned, tmp_path, 5)
    assert not np.array_equal(later.params["logit_scale"], after.params["logit_scale"])
    counts = metrics_of(tmp_path, "non_finite_batches")
    assert counts == {n: float(n >= 4) for n in range(1, 11)}


def test_rollback_continues_without_the_batch(poisoned, tmp_path, monkeypatch):
    """Like a run without that batch; also if it is interrupted on the way."""
    poisoned.non_finite = "rollback"
    experiment.train(poisoned, tmp_path / "whole")
    assert metrics_of(tmp_path / "whole", "non_finite_batches")[10] == 1.0

    poisoned.hooks.kill = {"name": "tests.training.components:Crash", "step": 7}
    with pytest.raises(KeyboardInterrupt):
        experiment.train(poisoned, tmp_path / "killed")
    del poisoned.hooks.kill
    experiment.train(poisoned, tmp_path / "killed")
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "killed", "non_finite_batches")[10] == 1.0

    class WithoutBad(Loader):
        drawn = 0

        def __next__(self):
            self.drawn += 1
            return super().__next__() if self.drawn != BAD else (super().__next__(), next(self))[1]

    monkeypatch.setattr(experiment, "Loader", WithoutBad)
    experiment.train(poisoned, tmp_path / "never")
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "never")
    states = [state_of(poisoned, tmp_path / name, 10) for name in ("whole", "never")]
    assert_trees_equal(*states)


class FakeRun(Run):
    """A run with only the parts that `NonFinite` uses."""

    def __init__(self):
        self.batch_number, self.bad_batches = 0, set()


def outcome(finite):
    return {"finite": jnp.bool_(finite), "loss": jnp.float32(1), "grad_norm": jnp.float32(1)}


@pytest.fixture
def watch(monkeypatch):
    """Returns a function that starts the policy on a fake run."""
    monkeypatch.setattr("vit_jax.training.hooks.non_finite.write_dump", lambda *args: None)

    def start(policy, limit):
        hook, run = NonFinite(policy, limit), FakeRun()
        hook.on_start(run)

        def step(number, batch, finite):
            run.batch_number = batch
            hook.after_step(run, number, outcome(finite))

        return hook, run, step

    return start


def test_consecutive_skips_have_a_limit(watch):
    hook, run, step = watch("skip", 2)
    for number, finite in enumerate([False, False, True, False, False, True], start=1):
        step(number, number + 100, finite)
    for number in (7, 8, 9):
        step(number, number + 100, False)
    with pytest.raises(UserError, match=r"step 9 is not finite \(failure 3 in a row\)"):
        hook.settle()
    assert run.bad_batches == {101, 102, 104, 105, 107, 108, 109}


def test_rollbacks_to_one_step_have_a_limit(watch):
    hook, _, step = watch("rollback", 2)
    for batch in (5, 6):
        step(3, batch, False)
        with pytest.raises(Rollback):
            hook.settle()
    step(3, 7, False)
    with pytest.raises(UserError, match="in a row"):
        hook.settle()


@pytest.fixture
def started(config, tmp_path):
    """Workdir of a run that was started before."""
    workdir.save_config(tmp_path, build(config).resolved_config)
    return tmp_path


def test_changed_keys_are_logged(config, started, caplog):
    config.optim.lr = 1.0
    config.log_steps = 5
    with caplog.at_level("WARNING", "vit_jax"):
        resume.check_resumable(started, build(config))
    assert "Changed since the last start: log_steps: 1 -> 5." in caplog.text
    assert "Changed since the last start: optim.lr: 0.003 -> 1.0." in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.image.width": 64}, r"model\.image\.width: 32 -> 64.*its saved state differs"),
        ({"optim.ema_decay": 0.9}, r"its saved state differs \(ema/.*: absent -> float32"),
        ({"optim.name": "muon"}, r"optim\.name: adamw -> muon"),
        ({"batch_size": 64}, r"batch_size: 32 -> 64\).*data position"),
        ({"seed": 1}, r"seed: 0 -> 1"),
        ({"data.train": "digits:test"}, r"digits:train -> digits:test"),
    ],
)
def test_a_config_that_does_not_fit_the_state_is_refused(config, started, change, message):
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        resume.check_resumable(started, build(config))


def hold(folder, ready):
    with workdir.locked(folder):
        ready.set()
        time.sleep(60)


def test_two_runs_in_one_workdir(tmp_path):
    """The second is refused while the first is alive."""
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


def test_a_workdir_in_use_is_not_touched(config, tmp_path):
    with workdir.locked(tmp_path), pytest.raises(UserError, match="is in use by process"):
        experiment.train(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_watchdog_prints_the_stacks_of_a_hanging_process(tmp_path):
    with (tmp_path / "stacks").open("w+") as file:
        with Watchdog(0.2, file) as dog:
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


def test_watchdog_is_silent_while_steps_complete(tmp_path):
    with (tmp_path / "stacks").open("w+") as file, Watchdog(1.0, file) as dog:
        for step in range(12):
            dog.saw(step)
            time.sleep(0.1)
        file.seek(0)
        assert file.read() == ""


def test_interrupted_before_the_first_step(config, tmp_path):
    config.hooks.stop = {
        "name": "tests.training.components:SendSignal", "step": 0, "signal": int(signal.SIGTERM),
    }  # fmt: skip
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


def test_names_in_a_config_are_no_file_names(config, tmp_path):
    """Names of evaluations become names of metrics, and write nowhere outside the workdir."""
    config.evals.zeroshot = {"/escape": {"data": "digits:test[:40]"}}
    config.total_steps = 1
    config.optim.warmup_steps = 0
    experiment.train(config, tmp_path / "a" / "b")
    assert "zeroshot//escape/top1" in (tmp_path / "a/b/metrics.jsonl").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
