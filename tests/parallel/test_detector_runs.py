"""A detector on one device, on eight in another layout, and on two processes: the same run."""

import json
import pathlib

import numpy as np
import pytest
from detector_recipe import get_config
from test_processes import finish, metrics, start

from tests.helpers import run_command
from vit_jax import experiment

RECIPE = pathlib.Path(__file__).parent / "detector_recipe.py"
pytestmark = pytest.mark.release


def check_same(found, expected):
    """Compares losses, and the last metrics: AP of near ties may differ, losses may not."""
    assert found[-1].keys() == expected[-1].keys()
    for one, other in zip(found, expected, strict=True):
        for name in ("loss", "giou_loss", "objectness_loss", "iou", "validation_loss/scenes/loss"):
            if name in other:
                np.testing.assert_allclose(one[name], other[name], rtol=2e-5, err_msg=name)
    name = "detection/scenes/AP50"
    np.testing.assert_allclose(found[-1][name], expected[-1][name], atol=2e-3)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir, config = tmp_path_factory.mktemp("one"), get_config()
    config.mesh.data = 1
    experiment.train(config, workdir)
    return workdir


def test_sharded_parameters_and_microbatches(one_device, tmp_path):
    config = get_config()
    config.mesh.update(data=2, fsdp=2, tensor=2)
    config.grad_accum_steps = 2
    experiment.train(config, tmp_path)
    check_same(metrics(tmp_path), metrics(one_device))


def test_two_processes(one_device, tmp_path):
    finish(start(tmp_path, 2, recipe=RECIPE, devices=2))
    check_same(metrics(tmp_path), metrics(one_device))


def test_evaluate_has_the_metrics_of_training(one_device):
    found = json.loads(run_command("evaluate", "--workdir", one_device, "--json").stdout)
    last = metrics(one_device)[-1]
    assert {"step": 4, **found} == last
