"""DeiT's losses against NumPy in float64; the teacher sees what the student sees, and is frozen."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import MEAN, STD, build, context, random_images, small_vit
from scipy.special import log_softmax, softmax

from vit_jax import experiment
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.models.spec import ModelSpec
from vit_jax.models.swin.model import SwinConfig
from vit_jax.objectives.distillation import KINDS, distillation_loss
from vit_jax.pretrained import native


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
    """Stands in for a model: its logits depend on the images' means."""

    def both_logits(self, images, *, rng):
        mean = images.mean((1, 2))
        return mean, 2.0 * mean[:, ::-1]


class Teacher:
    """A frozen linear classifier of the images' means, with a normalisation of its own."""

    spec = ModelSpec(
        architecture=small_vit(num_classes=3),
        inputs=ImageInputs(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
    )
    abstract: ClassVar = {"kernel": jax.ShapeDtypeStruct((3, 3), jnp.float32)}

    def __init__(self, weights):
        self.weights, self.model = weights, self

    def bind(self, params):
        return lambda images: images.mean((1, 2)) @ params["kernel"]

    def load(self):
        return {"kernel": self.weights}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_the_whole_objective(kind, alpha, training):
    """(1 - alpha) of the class token's cross-entropy, alpha of the distillation token's loss."""
    packed, seen = random_images(4)
    rng = np.random.default_rng(1)
    labels, weights = np.asarray([0, 2, 1, 1]), rng.normal(size=(3, 3))
    opened = []

    def open_model(*names):
        opened.append(names)
        return Teacher(jnp.asarray(weights, jnp.float32))

    student = context(small_vit(num_classes=3, distillation=True), open_model=open_model)
    objective = build(
        "distillation",
        student,
        distillation=kind,
        distillation_alpha=alpha,
        distillation_temperature=2.0,
        teacher_weights="somewhere",
        teacher_model="vit",
        label_smoothing=0.1,
    )
    assert opened == [("somewhere", "vit")]
    assert objective.abstract_constants == (Teacher.abstract,)
    batch = {"image": packed, "label": jnp.asarray(labels, jnp.int32)}
    constants = objective.load_constants()
    if training:
        loss, metrics = objective(Student(), batch, jax.random.key(0), *constants)
    else:
        loss, metrics = objective.evaluate(Student(), batch, *constants)

    mean = seen.mean((1, 2))
    # The teacher's own normalisation of the same pixels.
    pixels = mean * np.asarray(STD) + np.asarray(MEAN)
    taught = (pixels - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7] @ weights
    distilled = 2.0 * mean[:, ::-1]
    targets = np.eye(3)[labels]
    if training:
        targets = targets * 0.9 + 0.1 / 3
    own = -(targets * log_softmax(mean, axis=1)).sum(1).mean()
    if kind == "hard":
        following = -log_softmax(distilled, axis=1)[np.arange(4), taught.argmax(1)].mean()
    else:
        p, log_q = softmax(taught / 2, axis=1), log_softmax(distilled / 2, axis=1)
        following = 4 * (p * (np.log(p) - log_q)).sum(1).mean()
    np.testing.assert_allclose(loss, (1 - alpha) * own + alpha * following, rtol=1e-4)
    np.testing.assert_allclose(metrics["distillation_loss"], following, rtol=1e-4)
    assert metrics["teacher_accuracy"] == np.mean(taught.argmax(1) == labels)
    assert metrics["accuracy"] == np.mean((mean + distilled).argmax(1) == labels)


def test_the_teacher_sees_the_mixed_images():
    packed, _ = random_images(4)
    seen_by = {}

    class Watching(Teacher):
        def bind(self, params):
            def logits(images):
                seen_by["teacher"] = images
                return images.mean((1, 2)) @ params["kernel"]

            return logits

    class WatchedStudent(Student):
        def both_logits(self, images, *, rng):
            seen_by["student"] = images
            return super().both_logits(images, rng=rng)

    objective = build(
        "distillation",
        context(
            small_vit(num_classes=3, distillation=True),
            open_model=lambda *_: Watching(jnp.eye(3)),
        ),
        teacher_weights="somewhere",
        mixup_alpha=0.8,
    )
    batch = {"image": packed, "label": jnp.zeros(4, jnp.int32)}
    objective(WatchedStudent(), batch, jax.random.key(0), {"kernel": jnp.eye(3)})
    _, unmixed = random_images(4)
    student = np.asarray(seen_by["student"])
    assert not np.allclose(student, unmixed, atol=0.1)
    pixels = student * np.asarray(STD) + np.asarray(MEAN)
    np.testing.assert_allclose(
        seen_by["teacher"], (pixels - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7], rtol=1e-4, atol=1e-5
    )


def student_config(**changes):
    """A small DeiT with a distillation token on scikit-learn's digits."""
    config = default_config(model="deit_ti16_distilled", objective="distillation")
    config.model.update(
        image_size=8, patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=32, num_classes=10
    )
    config.data.train = "digits:train"
    config.batch_size = 16
    config.total_steps = 2
    config.checkpoint_percent = 0.0
    config.compute.scan = False
    for path, value in changes.items():
        block, _, key = path.rpartition(".")
        config[block][key] = value
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


def test_the_teacher_is_sharded_like_parameters_and_no_part_of_the_state(teacher_file):
    config = student_config(**{"objective.teacher_weights": str(teacher_file), "mesh.fsdp": 2})
    run = experiment.build(config)
    shapes = {x.shape for x in jax.tree.leaves(run.abstract_state)}
    (abstract,) = run.objective.abstract_constants
    kernel = abstract["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape not in shapes
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)


@pytest.mark.slow
def test_a_run_with_a_teacher(teacher_file, tmp_path):
    changes = {
        "objective.teacher_weights": str(teacher_file),
        "objective.mixup_alpha": 0.2,
        "mesh.fsdp": 2,
    }
    experiment.train(student_config(**changes), tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 2
    checkpoints.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "needs a teacher: set config.objective.teacher_weights"),
        (
            {"objective.teacher_model": "deit_b16"},
            "deit_b16 has 1000 classes, config.model.num_classes=10",
        ),
        ({"objective.teacher_model": "resnet5"}, "did you mean 'resnet50'"),
        ({"objective.teacher_weights": "absent.pt"}, "absent.pt"),
        ({"objective.teacher_weights": "setup.py"}, "setup.py"),
        ({"model.distillation": False}, "config.model.distillation=True; found ViTConfig without"),
        ({"objective.distillation": "sof"}, "did you mean 'soft'"),
        ({"objective.distillation_alpha": 1.5}, "expected a fraction"),
        ({"objective.distillation_temperature": 0.0}, "expected a positive"),
    ],
)
def test_distillation_with_the_wrong_config(changes, message, teacher_file, tmp_path):
    if "objective.distillation" in str(changes):
        changes = {**changes, "objective.teacher_weights": str(teacher_file)}
    with pytest.raises(UserError, match=message):
        experiment.train(student_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_with_one_head():
    swin = SwinConfig(
        image_size=8, patch_size=1, width=8, depths=(1, 1), num_heads=(2, 2), window_size=4,
        num_classes=3,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"needs a model with a second head, .*; found SwinConfig"):
        build("distillation", context(swin), teacher_model="vit_ti16")
