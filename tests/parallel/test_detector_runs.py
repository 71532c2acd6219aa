"""A detector on one device, on eight in another layout, and on two processes: the same run."""

import json
import pathlib

import numpy as np
import pytest
from detector_recipe import get_config
from test_processes import finish, metrics, start

import vit_jax
from tests.helpers import run_command
from tests.training.test_grounding_run import RUNS, SCENES, small_config
from vit_jax import experiment
from vit_jax.data.sources import open_source

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


@pytest.mark.parametrize("model", RUNS)
def test_models_that_read_captions(model, tmp_path):
    """Losses of each step, and then detections, on one device and on eight in another layout."""
    names, found = open_source(SCENES).class_names[:20], []
    for mesh in ({"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
        workdir = tmp_path / str(len(found))
        config = small_config(model, tmp_path)
        config.total_steps, config.log_steps, config.optim.warmup_steps = 3, 1, 0
        config.model.text.vocab_size = 16_384  # most parameters are sharded
        config.mesh.update(mesh)
        experiment.train(config, workdir)
        detector = vit_jax.create_model(weights=workdir)
        image = open_source(SCENES)[0]["image"]
        boxes = vit_jax.detect(detector, image, names, threshold=0.0, nms_threshold=1.0)
        found.append((metrics(workdir), boxes))
    (one, expected), (other, boxes) = found
    assert len(one) == len(other) == 3
    for name in ("loss", "class_loss", "giou_loss", "iou"):
        values = [[line[name] for line in lines] for lines in (one, other)]
        np.testing.assert_allclose(*values, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(boxes.scores, expected.scores, rtol=1e-3)
