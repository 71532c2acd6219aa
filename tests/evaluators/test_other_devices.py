"""Runs are opened on other devices than they were trained on, with the same metrics."""

import contextlib
import itertools
import json
import types

import jax
import numpy as np
import pytest

import vit_jax
from tests.helpers import assert_trees_equal, run_command, tiny_classifier, tiny_clip
from vit_jax import experiment
from vit_jax.checkpoint.manager import Checkpoints, Retention
from vit_jax.errors import UserError
from vit_jax.evaluation import open_run
from vit_jax.parallel.sharding import parameter_shardings
from vit_jax.pretrained import native
from vit_jax.training.resume import check_resumable
from vit_jax.workdir import save_config


def evaluated(config):
    """Batches of 12, which 8 devices do not divide, and a loss that depends on them."""
    config.eval_batch_size = 12
    config.evals.validation_loss = {"digits": {"data": "digits:test", "examples": 40}}
    return config


def assert_same_metrics(found, expected):
    """Up to the rounding errors of float32: metrics have six decimals."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory):
    """Workdir of a run on fsdp=4 x tensor=2 that has saved parameters."""
    workdir, config = tmp_path_factory.mktemp("sharded"), evaluated(tiny_clip())
    config.mesh.fsdp, config.mesh.tensor = 4, 2
    run = experiment.build(config, workdir=workdir)
    save_config(workdir, run.resolved_config)
    run.tokenizer.save(workdir)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(scale=0.1, size=x.shape).astype(x.dtype), run.model.shapes()
    )
    params = jax.device_put(params, parameter_shardings(run.model, run.mesh))
    state = types.SimpleNamespace(params=params, opt_state=None, ema=None, anchor=None)
    with contextlib.closing(Checkpoints(workdir, retention=Retention(1))) as checkpoints:
        checkpoints.save(1, state, data={}, config={}, metrics={})
    return workdir


def test_a_sharded_run_on_one_and_on_more_devices(sharded_run):
    """Batches that the devices do not divide are padded, or computed as a whole."""
    one = open_run(sharded_run, devices=jax.devices()[:1])
    five = open_run(sharded_run, mesh={"data": 5}, devices=jax.devices()[:6])
    assert [x.embedder.mesh.devices.shape for x in (one, five)] == [(1, 1, 1), (5, 1, 1)]
    assert_same_metrics(five.run(five.evals), one.run(one.evals))


def test_the_layout_of_training_is_kept_where_it_fits(sharded_run):
    assert open_run(sharded_run).embedder.mesh.devices.shape == (1, 4, 2)
    with pytest.raises(UserError, match="fsdp=3 x tensor=1 does not divide 8 devices"):
        open_run(sharded_run, mesh={"fsdp": 3})


def test_a_sharded_run_by_its_folder_on_the_default_device(sharded_run):
    model = vit_jax.create_model(weights=sharded_run)
    opened = open_run(sharded_run, devices=jax.devices()[:1])
    assert_trees_equal(model.params, opened.params)
    assert {x.sharding.num_devices for x in jax.tree.leaves(model.params)} == {1}
    assert_trees_equal(model.tokenize(["a", "3"]), opened.embedder.tokenize(["a", "3"]))
    with pytest.raises(UserError, match="is opened as it was trained; found image_size=16"):
        vit_jax.create_model(weights=sharded_run, image_size=16)


def test_training_goes_on_where_its_mesh_is_overridden(sharded_run):
    """Also with a changed key, for which the state of the last start is declared again."""
    config, (device, *_) = evaluated(tiny_clip()), jax.devices()
    config.optim.lr = 1e-3
    config.mesh.fsdp, config.mesh.tensor = 4, 2
    before = experiment.build(config, workdir=sharded_run, devices=[device])
    with pytest.raises(UserError, match="fsdp=4 x tensor=2 does not divide 1 devices"):
        check_resumable(sharded_run, before)
    config.mesh.fsdp = config.mesh.tensor = 1
    check_resumable(sharded_run, experiment.build(config, workdir=sharded_run, devices=[device]))


MESHES = ({"data": 1}, {"data": 4}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2})


@pytest.mark.release
@pytest.mark.parametrize("make", [tiny_clip, tiny_classifier])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_commands_on_1_2_and_8_devices(make, mesh, tmp_path):
    """A run on 1, 4 or 8 devices, evaluated and converted in processes of 1, 2 and 8 devices."""
    config, workdir = evaluated(make()), tmp_path / "run"
    config.mesh.update(mesh)
    expected = experiment.train(config, workdir)
    files = []
    for count in (1, 2, 8):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        done = run_command("evaluate", "--workdir", workdir, "--json", **flags)
        assert_same_metrics(json.loads(done.stdout), expected)
        files.append(tmp_path / f"{count}.safetensors")
        arguments = ("--workdir", workdir, "--output", files[-1], "--to", native.NAME)
        run_command("convert", *arguments, **flags)
    params = [native.load(path)[1] for path in files]
    for left, right in itertools.pairwise(params):
        assert_trees_equal(left, right)
    one = open_run(workdir, devices=jax.devices()[:1])
    assert_trees_equal(params[0], one.params)
