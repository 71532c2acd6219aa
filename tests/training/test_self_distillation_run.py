"""Self-distillation from config to checkpoints: the teacher is a part of the state."""

import itertools
import math

import jax
import numpy as np
import pytest

from tests.helpers import assert_trees_equal, metrics_of, run_command, train_in_two_parts
from vit_jax import experiment
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.config import default_config, model_spec
from vit_jax.errors import UserError
from vit_jax.evaluation import open_run
from vit_jax.models.definition import ModelDef
from vit_jax.pretrained.weight_files import load_weights
from vit_jax.training.stages import make_stages
from vit_jax.workdir import load_config

STEPS, DECAY = 4, 0.8


def tiny_dino(**changes):
    """DINOv2's objective on scikit-learn's digits, four steps of 16 images."""
    config = default_config("dinov2_s14_pretraining", objective="self_distillation")
    config.model.image.update(
        image_size=8, patch_size=2, width=16, depth=1, num_heads=2, mlp_dim=16, drop_path=0.2
    )
    config.model.update(head_dim=16, bottleneck=8, prototypes=32, patch_bottleneck=8)
    config.data.train = "digits:train[:64]"
    config.data.augment = "random_resized_crop(scale=(0.5, 1.0))"
    config.data.crops.update(local_size=4, num_local=2)
    config.objective.update(
        centering="mean", teacher_warmup_percent=50.0, freeze_prototypes_percent=50.0
    )
    config.optim.update(
        lr=3e-3, ema_decay=DECAY, ema_schedule="cosine", weight_decay=0.04, final_weight_decay=0.4
    )
    config.mesh.update(data=1)
    config.batch_size, config.total_steps, config.log_steps = 16, STEPS, 1
    config.checkpoint_steps, config.checkpoint_percent, config.keep_checkpoints = 1, 0.0, STEPS
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dino")
    config = tiny_dino()
    config.hooks.samples = {"name": "samples", "count": 2}  # draws global crops
    experiment.train(config, workdir)
    return workdir


def history(workdir):
    """Student and teacher after each step."""
    checkpoints = Checkpoints(workdir)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        open_run(workdir).params,
    )
    return [
        [checkpoints.restore_params(abstract, ema=ema, step=n)[0] for ema in (False, True)]
        for n in range(1, STEPS + 1)
    ]


@pytest.mark.release
def test_the_teacher_follows_the_student(finished):
    """By the published schedule; the last one is what evaluations read."""
    (_, average), *later = history(finished)
    for step, (student, teacher) in enumerate(later, start=1):
        d = 1 - (1 - DECAY) * (1 + math.cos(math.pi * step / STEPS)) / 2
        average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, average, student)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), teacher, average
        )
    assert_trees_equal(open_run(finished).params, teacher)


@pytest.mark.release
def test_teacher_and_student_become_plain_vits(finished, tmp_path):
    student, teacher = history(finished)[-1]
    for name, flags, expected in (("t", (), teacher), ("s", ("--noema",), student)):
        path = tmp_path / f"{name}.safetensors"
        output = ("--output", path, "--to", "dinov2", "--tower", "image")
        run_command("convert", "--workdir", finished, *output, *flags)
        model = ModelDef(model_spec(load_config(finished)).architecture.image)
        assert_trees_equal(load_weights(path, model), expected["image"])


@pytest.mark.release
def test_schedules_and_centres(finished):
    found = list(metrics_of(finished, "teacher_temperature").values())
    np.testing.assert_allclose(found, [0.04, 0.055, 0.07, 0.07], rtol=1e-6)
    students = [student for student, _ in history(finished)]
    kernels = [np.asarray(x["head"]["kernel"]) for x in students]
    directions = [k / np.linalg.norm(k, axis=0) for k in kernels]
    np.testing.assert_allclose(directions[1], directions[0], atol=1e-6)  # frozen for two steps
    assert np.abs(directions[2] - directions[1]).max() > 1e-4
    for name in ("class_centre", "patch_centre"):
        centres = [np.asarray(x[name]) for x in students]
        assert all(np.abs(b - a).max() > 1e-5 for a, b in itertools.pairwise(centres))


@pytest.mark.release
def test_interrupted_and_resumed_equals_uninterrupted(finished, tmp_path):
    message = train_in_two_parts(tiny_dino(), tmp_path, step=2)
    assert "stopped and saved at step 2 of 4" in message
    assert metrics_of(tmp_path) == metrics_of(finished)
    assert_trees_equal(history(tmp_path)[-1], history(finished)[-1])


@pytest.mark.release
def test_a_gram_teacher_is_resumed(tmp_path):
    """It is the teacher of step 2, which no checkpoint of step 3 has in another place."""
    changes = {"objective.gram_weight": 1.0, "objective.gram_start_percent": 50.0}
    changes |= {"objective.gram_every_percent": 50.0, "data.crops.gram_size": 16}
    config = tiny_dino(**changes)
    experiment.train(config, tmp_path / "whole")
    train_in_two_parts(config, tmp_path / "parts", step=3)
    gram = metrics_of(tmp_path / "whole", "gram_loss")
    assert gram == metrics_of(tmp_path / "parts", "gram_loss")
    assert gram[1] == gram[2] == 0
    assert gram[3] > 0
    assert_trees_equal(history(tmp_path / "parts")[-1], history(tmp_path / "whole")[-1])


def test_a_gram_teacher_of_an_early_stage_alone_is_refused():
    config = tiny_dino()
    config.stages.first = {"until_percent": 50.0, "objective": {"gram_weight": 1.0}}
    with pytest.raises(UserError, match=r"stages\.first has a Gram teacher, which the state"):
        make_stages(experiment.build(config))


@pytest.mark.release
def test_sharded_over_eight_devices(tmp_path):
    """On a mesh that splits student, teacher and moments, with accumulation.

    Without KoLeo: the class tokens of fresh parameters are nearly equal, and it
    enlarges rounding. The objective's test has its gradients.
    """
    changes = {"objective.centering": "sinkhorn", "objective.koleo_weight": 0.0}
    changes |= {"model.image.drop_path": 0.0, "checkpoint_steps": STEPS}
    experiment.train(tiny_dino(**changes), tmp_path / "one")
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.zero1": True}
    experiment.train(tiny_dino(**changes, **mesh, grad_accum_steps=2), tmp_path / "eight")
    one, eight = (list(metrics_of(tmp_path / name).values()) for name in ("one", "eight"))
    np.testing.assert_allclose(eight, one, rtol=2e-5)


def test_without_a_moving_average_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match=r"config\.optim\.ema_decay=0: the teacher"):
        experiment.train(tiny_dino(**{"optim.ema_decay": 0.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_loss_is_refused(tmp_path):
    config = tiny_dino()
    config.evals.validation_loss = {"digits": {"data": "digits:test"}}
    with pytest.raises(UserError, match="evaluate by knn or probe instead"):
        experiment.train(config, tmp_path / "run")
