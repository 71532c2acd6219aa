"""Distillation of dual encoders against NumPy in float64, on any mesh and accumulation."""

import dataclasses
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from contexts import MEAN, SMALL, STD, build, context, random_images, small_vit
from flax import nnx
from PIL import Image
from scipy.special import log_softmax, softmax

from vit_jax import experiment
from vit_jax.config import default_config
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.objectives.contrastive_distillation import DIVERGENCES, affinity_loss
from vit_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh, to_devices

VOCABULARY, LENGTH, BATCH = 13, 5, 16
CLIP = CLIPConfig(
    image=small_vit(),
    text=TextConfig(
        vocab_size=VOCABULARY, context_length=LENGTH, width=8, depth=1, num_heads=2, mlp_dim=12
    ),
    embed_dim=8,
)
# A teacher with another vocabulary and shorter texts, and the field with its tokens.
WORDS, WORD_TOKENS = {"vocab_size": 9, "context_length": 3}, "tokens/words/3"
KEYS = {"contrastive_weight": 0.25, "distillation_weight": 0.75}


def draw(dim, seed, vocabulary=VOCABULARY):
    """Weights of linear towers, and the scale of their logits."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(3, dim)),
        "text": rng.normal(size=(vocabulary, dim)),
        "scale": np.asarray(3.0 + seed),
    }


class Towers:
    """Embeds the first pixel of an image and the sum of the tokens of a text."""

    def encode_image(self, images, *, normalize, rng=None):
        assert normalize
        return unit(images[:, 0, 0] @ self.weight("image"))

    def encode_text(self, tokens, *, normalize, rng=None):
        assert normalize
        return unit(self.weight("text")[tokens].sum(1))

    def logit_parameters(self):
        return self.weight("scale"), None


class Student(Towers, nnx.Module):
    def __init__(self, weights):
        for name, value in weights.items():
            setattr(self, name, nnx.Param(jnp.asarray(value, jnp.float32)))

    def weight(self, name):
        return getattr(self, name)[...]


class Bound(Towers):
    def __init__(self, weights):
        self.weights = weights

    def weight(self, name):
        return self.weights[name]


class Teacher:
    """A frozen dual encoder with a normalisation, an image size and texts of its own."""

    abstract: ClassVar = {}

    def __init__(self, weights, size=(8, 12), tokenizer="words", **text):
        image, text = ViTConfig(image_size=size, **SMALL), dataclasses.replace(CLIP.text, **text)
        architecture = dataclasses.replace(CLIP, image=image, text=text)
        inputs = ImageInputs(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
        self.spec = ModelSpec(architecture=architecture, inputs=inputs, tokenizer=tokenizer)
        self.weights, self.model = weights, self

    def shapes(self):
        return {}

    def bind(self, params):
        return Bound(params)

    def load(self):
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self.weights)


def unit(x):
    return x / (x**2).sum(-1, keepdims=True) ** 0.5


SIZES = {"same": (8, 12), "smaller": (4, 6)}
TEXTS = {"same": {}, "smaller": WORDS}


@pytest.fixture(scope="module")
def case():
    """Weights, a batch, and similarities of images (rows) and texts by all three models."""
    student = draw(4, 0)
    teachers = {"same": draw(6, 1), "smaller": draw(5, 2, WORDS["vocab_size"])}
    packed, seen = random_images(BATCH)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VOCABULARY, (BATCH, LENGTH))
    words = rng.integers(0, WORDS["vocab_size"], (BATCH, WORDS["context_length"]))
    pixels = seen * np.asarray(STD) + np.asarray(MEAN)

    def cosines(weights, images, tokens):
        texts = weights["text"][tokens].sum(1)
        return unit(images[:, 0, 0] @ weights["image"]) @ unit(texts).T

    found = {"student": cosines(student, seen, tokens)}
    for name, weights in teachers.items():
        images = (resized(pixels, *SIZES[name]) - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
        found[name] = cosines(weights, images, tokens if name == "same" else words)
    texts = {"tokens": tokens.astype(np.int32), WORD_TOKENS: words.astype(np.int32)}
    batch = {"image": np.asarray(packed), **texts}
    return types.SimpleNamespace(
        student=student, teachers=teachers, batch=batch, cosines=found,
        images=unit(seen[:, 0, 0] @ student["image"]),
        texts=unit(student["text"][tokens].sum(1)),
    )  # fmt: skip


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def resized(images, height, width):
    """Bicubic with antialias, by Pillow."""
    planes = [
        [Image.fromarray(x.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
         for x in np.moveaxis(image, -1, 0)]
        for image in images
    ]  # fmt: skip
    return np.moveaxis(np.asarray([[np.asarray(x) for x in image] for image in planes]), 1, -1)


def expected_losses(case, divergence):
    """The contrastive loss, and open_clip's `DistillClipLoss` or MobileCLIP's affinity mimicking.

    The second teacher has a temperature of 0.2.
    """
    own = case.student["scale"] * case.cosines["student"]
    scale = float(case.student["scale"])
    contrast = reference.contrastive(case.images, case.texts, scale, 0, "softmax").loss
    found = []
    for name, factor in (("same", case.teachers["same"]["scale"]), ("smaller", 5)):
        theirs = factor * case.cosines[name]
        for student, teacher in ((own, theirs), (own.T, theirs.T)):
            p = softmax(teacher, axis=1)
            value = -(p * log_softmax(student, axis=1)).sum(1).mean()
            entropy = -(p * np.log(p)).sum(1).mean()
            found.append(value - entropy if divergence == "kl" else value)
    return contrast, np.mean(found)


def objective_of(case, divergence="cross_entropy", **fields):
    """The objective with both teachers, and their parameters."""
    opened = {name: Teacher(x, SIZES[name], **TEXTS[name]) for name, x in case.teachers.items()}
    objective = build(
        "contrastive_distillation",
        context(CLIP, open_model=lambda weights, model: opened[weights], **fields),
        teachers={"a": {"weights": "same"}, "b": {"weights": "smaller", "temperature": 0.2}},
        divergence=divergence,
        **KEYS,
    )
    return objective, objective.load_constants()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_loss_of_two_teachers(case, divergence):
    objective, constants = objective_of(case, divergence)
    assert objective.fields == ("image", "tokens", WORD_TOKENS)
    assert objective.config.teachers["a"] == {
        "weights": "same", "model": "", "tokenizer": "", "temperature": 0.0
    }  # fmt: skip
    evaluate = jax.jit(lambda *given: objective.evaluate(Student(case.student), *given))
    loss, metrics = evaluate(on_device(case.batch), *constants)
    contrast, distillation = expected_losses(case, divergence)
    np.testing.assert_allclose(metrics["contrastive_loss"], contrast, rtol=1e-5)
    np.testing.assert_allclose(metrics["distillation_loss"], distillation, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.25 * contrast + 0.75 * distillation, rtol=1e-4)
    right = [np.argmax(case.cosines[x], axis=1) == np.arange(BATCH) for x in SIZES]
    np.testing.assert_allclose(metrics["teacher_accuracy"], np.mean(right), rtol=1e-6)


def test_gradients_of_the_affinity_loss():
    student, teacher = np.random.default_rng(0).normal(size=(2, 5, 5)) * 3
    slopes = [softmax(student, axis) - softmax(teacher, axis) for axis in (0, 1)]
    for divergence in DIVERGENCES:
        gradient = jax.jit(jax.grad(affinity_loss, argnums=(0, 1)), static_argnums=2)
        gradients = gradient(*(jnp.asarray(x, jnp.float32) for x in (student, teacher)), divergence)
        np.testing.assert_allclose(gradients[0], sum(slopes) / 10, atol=1e-6)
        assert not np.any(gradients[1])


def test_devices_and_microbatches_change_nothing(case):
    mesh = make_mesh(devices=jax.devices()[:4])
    split = {"mesh": mesh, "batch_axes": BATCH_AXES, "microbatches": (2, 4)}
    found = []
    for fields, sharding in (({}, None), (split, batch_sharding(mesh))):
        objective, constants = objective_of(case, **fields)
        graphdef, state = nnx.split(Student(case.student))

        def loss(state, constants, batch, objective=objective, graphdef=graphdef):
            student, key = nnx.merge(graphdef, state), jax.random.key(0)
            return objective(student, batch, key, *constants)[0]

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        batch = to_devices(case.batch, sharding) if sharding else on_device(case.batch)
        found.append(jax.device_get(step(state, constants, batch)))
    (value, (gradient, taught)), (other_value, (other_gradient, _)) = found
    contrast, distillation = expected_losses(case, "cross_entropy")
    np.testing.assert_allclose(value, 0.25 * contrast + 0.75 * distillation, rtol=1e-4)
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    leaves = [jax.tree.leaves(x) for x in (gradient, other_gradient)]
    assert all(np.any(x) for x in leaves[0])
    for ours, theirs in zip(*leaves, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-7)
    assert not any(np.any(x) for x in jax.tree.leaves(taught))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teachers": {}}, r"config\.objective\.teachers is empty: expected dual encoders"),
        ({"teachers": {"a": 3}}, r"teachers\.a=3: expected the keys of a teacher"),
        ({"teachers": {"a": {"weigths": "x"}}}, r"teachers\.a\.weigths.*did you mean"),
        ({"teachers": {"a": {}}}, r"teachers\.a: expected weights, a weight file"),
        (
            {"teachers": {"a": {"model": "x", "temperature": -1.0}}},
            r"a\.temperature=-1\.0: expected 0 or more",
        ),
        ({"form": "ring"}, r"form='ring': rows of the teachers' similarities are compared as a"),
        ({"divergence": "k"}, "did you mean 'kl'"),
        ({"distillation_weight": -1.0}, "expected a number of at least 0"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(UserError, match=message):
        build("contrastive_distillation", context(CLIP), **keys)


def run_config(context_length=16, **changes):
    """A run that is planned, so that tokenizers are compared by their sizes."""
    config = default_config(model="clip_vit_emoji", objective="contrastive_distillation")
    config.update(batch_size=16, total_steps=2)
    config.objective.update(changes)
    config.model.text.context_length = context_length
    return experiment.build(config, data=False, devices=jax.devices()[:1])


def test_teachers_read_the_tokens_of_their_own_tokenizers():
    """Of four teachers, one has the student's tokenizer, and two have another one in common."""
    sizes = {"vocab_size": 49408, "context_length": 12}
    student = open_tokenizer("clip", **sizes)
    padded = "clip:?pad=49407"
    opened = {
        "same": Teacher(None, tokenizer="clip", **sizes),
        "longer": Teacher(None, tokenizer="clip", vocab_size=49408, context_length=16),
        "padded": Teacher(None, tokenizer=padded, **sizes),
        "no file": Teacher(None, tokenizer="gemma", **sizes),
        "unknown": Teacher(None, tokenizer=None, **sizes),
    }

    run = context(CLIP, tokenizer=lambda: student, open_model=lambda weights, _: opened[weights])
    teachers = {name: {"weights": name} for name in ("same", "longer", "padded")}
    teachers["named"] = {"weights": "no file", "tokenizer": padded}
    found = build("contrastive_distillation", run, teachers=teachers)
    others = {"tokens/clip/16": 16, f"tokens/{padded}/12": 12}
    parts = {"contrastive": {}, "contrastive_distillation": {"teachers": teachers}}
    summed = build("weighted_sum", run, parts=parts)
    assert found.fields == summed.fields == ("image", "tokens", *others)
    assert summed.other_tokens.keys() == found.other_tokens.keys()
    for name, length in others.items():
        tokens = found.other_tokens[name]
        assert tokens.length == length
        assert tokens.tokenizer("a cat").shape == (1, length)
        assert tokens.tokenizer("a cat")[0, -1] == (49407 if length == 12 else 0)
    for name, example in (("no file", "gemma:FILE"), ("unknown", "saved:RUN, clip or")):
        with pytest.raises(UserError, match=rf"teacher {name} .*\.a\.tokenizer, as {example}"):
            build("contrastive_distillation", run, teachers={"a": {"weights": name}})


def test_a_teacher_is_a_dual_encoder():
    with pytest.raises(UserError, match="vit_ti16: expected a dual encoder, as clip_vit_b16; foun"):
        _ = run_config(teachers={"a": {"model": "vit_ti16"}}).objective


def test_a_teacher_is_planned_without_weights():
    teachers = {"a": {"model": "clip_vit_emoji"}}
    run, other = (run_config(length, teachers=teachers) for length in (16, 15))
    assert set(run.abstract_batch) == {"image", "tokens"}
    assert other.abstract_batch["tokens/trained/16"].shape == (16, 16)
    objective = run.objective
    assert [set(x) for x in objective.abstract_constants] == [
        {"image", "text", "image_projection", "text_projection", "logit_scale"}
    ]
    with pytest.raises(UserError, match="expected a weight file or the workdir of a run"):
        objective.load_constants()
