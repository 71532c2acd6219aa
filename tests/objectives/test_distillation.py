"""DeiT's losses against NumPy in float64; the teacher sees what the student sees, and is frozen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from vit_jax.training.teacher import build_teacher

from vit_jax import experiment
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.objectives.distillation import Distillation, distillation_loss
from vit_jax.parallel.mesh import make_mesh
from vit_jax.pretrained import native
from vit_jax.training import assembly


def student_config(**changes):
    """A small DeiT with a distillation token on scikit-learn's digits."""
    config = default_config(model="deit_ti16_distilled")
    config.model.update(
        image_size=8, patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=32, num_classes=10
    )
    config.data.train = "digits:train"
    config.batch_size = 16
    config.total_steps = 2
    config.checkpoint_percent = 0.0
    config.compute.scan = False
    config.objective.name = "distillation"
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """A ViT of other sizes and another normalisation, in the library's own format."""
    spec = registry.model_spec("vit_ti16")
    architecture = dataclasses.replace(
        spec.architecture,
        image_size=8,
        patch_size=2,
        width=12,
        depth=1,
        num_heads=2,
        mlp_dim=8,
        num_classes=10,
        weight_init="normal",
    )
    spec = dataclasses.replace(spec, architecture=architecture)
    rng = np.random.default_rng(7)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.2,
        ModelDef(architecture).shapes(),
    )
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    native.save(path, params, spec)
    return path


def test_both_losses_in_float64():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 10)) * 4
    hard = -log_softmax(student, axis=1)[np.arange(6), teacher.argmax(1)].mean()
    for temperature in (1.0, 3.0):
        p = softmax(teacher / temperature, axis=1)
        kl = (p * (np.log(p) - log_softmax(student / temperature, axis=1))).sum(1).mean()
        args = (jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32))
        found = distillation_loss(*args, "soft", temperature)
        np.testing.assert_allclose(found, temperature**2 * kl, rtol=1e-5)
        np.testing.assert_allclose(distillation_loss(*args, "hard", temperature), hard, rtol=1e-5)


class Student:
    """Stands for a model: its logits depend on the images' means."""

    def both_logits(self, images, *, rng):
        mean = images.mean((1, 2))
        return mean, 2.0 * mean[:, ::-1]


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_whole_objective(kind, alpha):
    """(1 - alpha) of the class token's cross-entropy, alpha of the distillation token's loss."""
    rng = np.random.default_rng(1)
    images, labels = rng.normal(size=(4, 2, 2, 3)), np.asarray([0, 2, 1, 1])
    weights = rng.normal(size=(3, 3))

    def teacher(params, images):
        return images.mean((1, 2)) @ params

    objective = Distillation(
        "softmax",
        teacher=teacher,
        kind=kind,
        alpha=alpha,
        temperature=2.0,
        num_classes=3,
        prepare=lambda x: x,
        label_smoothing=0.1,
    )
    batch = {"image": jnp.asarray(images, jnp.float32), "label": jnp.asarray(labels)}
    loss, metrics = objective(Student(), batch, jax.random.key(0), jnp.asarray(weights))

    mean = images.mean((1, 2))
    taught, distilled = mean @ weights, 2.0 * mean[:, ::-1]
    targets = np.eye(3)[labels] * 0.9 + 0.1 / 3
    own = -(targets * log_softmax(mean, axis=1)).sum(1).mean()
    if kind == "hard":
        following = -log_softmax(distilled, axis=1)[np.arange(4), taught.argmax(1)].mean()
    else:
        p, log_q = softmax(taught / 2, axis=1), log_softmax(distilled / 2, axis=1)
        following = 4 * (p * (np.log(p) - log_q)).sum(1).mean()
    np.testing.assert_allclose(loss, (1 - alpha) * own + alpha * following, rtol=1e-5)
    np.testing.assert_allclose(metrics["distillation_loss"], following, rtol=1e-5)
    assert metrics["teacher_accuracy"] == np.mean(taught.argmax(1) == labels)
    assert metrics["accuracy"] == np.mean((mean + distilled).argmax(1) == labels)


def test_the_teacher_sees_the_same_mixed_pictures_in_its_own_normalisation(teacher_file):
    config = student_config(**{"teacher.weights": str(teacher_file)})
    teacher = build_teacher(config, make_mesh(devices=jax.devices()[:1]))
    params = teacher.load()
    pixels = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    mine = (pixels - np.asarray(config.preprocess.mean)) / np.asarray(config.preprocess.std)
    expected = teacher.model.bind(params)(jnp.asarray((pixels - 0.5) / 0.5))
    assert tuple(config.preprocess.mean) != (0.5, 0.5, 0.5)
    found = teacher(params, jnp.asarray(mine, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_sharded_like_parameters_and_no_part_of_the_state(teacher_file):
    config = student_config(**{"teacher.weights": str(teacher_file), "mesh.fsdp": 2})
    program = assembly.build_program(
        config, assembly.build_mesh(config), warmup_steps=0, total_steps=2
    )
    shapes = {x.shape for x in jax.tree.leaves(program.abstract)}
    (abstract,) = program.abstract_constants
    kernel = abstract["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape not in shapes
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)


@pytest.mark.slow
def test_a_run_with_a_teacher(teacher_file, tmp_path):
    changes = {"teacher.weights": str(teacher_file), "mesh.fsdp": 2, "objective.mixup_alpha": 0.2}
    experiment.train(student_config(**changes), tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 2
    checkpoints.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "needs a teacher: set config.teacher.weights"),
        ({"teacher.model": "deit_b16"}, "has 1000 classes, config.model.num_classes=10"),
        ({"teacher.model": "resnet5"}, "did you mean 'resnet50'"),
        ({"teacher.weights": "absent.pt"}, "absent.pt: expected the folder of a run or a weight"),
        ({"teacher.weights": "setup.py"}, "setup.py"),
        ({"model.distillation": False}, "config.model.distillation=True; found 'vit' without it"),
        ({"objective.distillation": "sof"}, "did you mean 'soft'"),
        ({"objective.distillation_alpha": 1.5}, "expected a share"),
        ({"objective.distillation_temperature": 0.0}, "expected a positive"),
    ],
)
def test_distillation_with_the_wrong_config(changes, message, teacher_file, tmp_path):
    if "objective" in str(changes):
        changes = {**changes, "teacher.weights": str(teacher_file)}
    with pytest.raises(UserError, match=message):
        experiment.train(student_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_distillation_needs_a_vit(tmp_path):
    config = default_config(model="swin_t")
    config.update(batch_size=8, total_steps=1)
    config.model.num_classes = 10
    config.data.train = "digits:train"
    config.objective.name = "distillation"
    with pytest.raises(UserError, match=r"needs a model of the family vit .*; found 'swin'"):
        experiment.train(config, tmp_path / "run")
