"""The objective on held-out data, against NumPy; padding does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from vit_jax.config import default_config
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluators.suite import Suite
from vit_jax.experiment import build

TOWER = {
    "image_size": 8, "patch_size": 2, "width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64,
}  # fmt: skip


def classifier(**objective):
    """A tiny classifier that is trained with everything that evaluation turns off."""
    config = default_config(model="deit_ti16", objective="classification")
    config.model.update(**TOWER, num_classes=10, drop_path=0.5)
    config.objective.update(label_smoothing=0.3, mixup_alpha=0.8, cutmix_alpha=1.0, **objective)
    return config


def masked_autoencoder():
    config = default_config(model="mae_vit_b16", objective="masked_reconstruction")
    config.model.image.update(TOWER)
    config.model.update(decoder_width=16, decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=32)
    return config


def opened(config, devices):
    """The experiment of a config, and fresh parameters."""
    config.data.train = "digits:train"
    config.batch_size, config.total_steps, config.eval_batch_size = 32, 1, 16
    config.grad_accum_steps = 2
    config.mesh.data = devices
    experiment = build(config)
    return experiment, jax.jit(experiment.model.init)(jax.random.key(1))


def evaluated(experiment, params, **keys):
    evals = {"validation_loss": {"digits": {"data": "digits:test", **keys}}}
    metrics = Suite(evals, experiment.embedder(), experiment.objective).run(params)
    return {name.removeprefix("validation_loss/digits/"): value for name, value in metrics.items()}


def images_of(experiment, rows):
    """Packed pixels to normalized images, in NumPy."""
    inputs, source = experiment.inputs, open_source("digits:test")
    pixels = np.stack([inputs(source[int(row)]["image"]) for row in rows]) / 255.0
    return ((pixels - np.array(inputs.mean)) / np.array(inputs.std)).astype(np.float32)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.release), 8])
def test_classification(devices):
    """Of 359 images, the last of 23 batches has 7."""
    experiment, params = opened(classifier(), devices)
    labels = open_source("digits:test").labels
    logits = experiment.model.bind(params)(jnp.asarray(images_of(experiment, range(359))))
    losses = -log_softmax(np.asarray(logits, np.float64), axis=1)[np.arange(359), labels]
    found = evaluated(experiment, params)
    assert set(found) == {"loss", "accuracy"}
    assert abs(found["loss"] - losses.mean()) < 2e-6
    assert abs(found["accuracy"] - np.mean(np.argmax(logits, axis=1) == labels)) < 2e-6


def test_the_sigmoid_loss():
    experiment, params = opened(classifier(loss="sigmoid"), 1)
    labels = open_source("digits:test").labels
    logits = experiment.model.bind(params)(jnp.asarray(images_of(experiment, range(359))))
    logits = np.asarray(logits, np.float64)
    signs = 2 * np.eye(10)[labels] - 1
    expected = np.log1p(np.exp(-signs * logits)).sum(axis=1).mean()
    assert abs(evaluated(experiment, params)["loss"] - expected) < 1e-5


@pytest.mark.release
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.release), 8])
def test_masked_reconstruction(devices):
    """Masks are those of a fixed key; 40 images are two batches and a half."""
    experiment, params = opened(masked_autoencoder(), devices)
    order = np.random.default_rng(3).permutation(359)[:40]
    losses = []
    for start in (0, 16, 32):
        rows = order[start : start + 16]
        images = images_of(experiment, rows)
        noise = jax.random.uniform(jax.random.key(0), (16, 16))[: len(rows)]
        predicted, mask = experiment.model.bind(params).reconstruct(
            jnp.asarray(images), noise, 0.75
        )
        patches = images.reshape(len(rows), 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5)
        target = patches.reshape(len(rows), 16, 12).astype(np.float64)
        target = target - target.mean(axis=-1, keepdims=True)
        target /= np.sqrt(target.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
        hidden = np.asarray(mask, bool)
        assert (hidden.sum(axis=1) == 12).all()
        errors = ((np.asarray(predicted, np.float64) - target) ** 2).mean(axis=-1)
        losses += [error[row].mean() for error, row in zip(errors, hidden, strict=True)]
    found = evaluated(experiment, params, examples=40, seed=3)
    assert set(found) == {"loss"}
    assert abs(found["loss"] - np.mean(losses)) < 1e-5


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.release), 8])
def test_contrastive_loss_of_whole_batches(tiny_config, devices):
    """Of 40 pairs, those that do not fill a batch of 16 are left out."""
    tiny_config.evals = {}
    experiment, params = opened(tiny_config, devices)
    source, model = open_source("digits:test"), experiment.model.bind(params)
    order = np.random.default_rng(0).permutation(359)[:32]
    scale = np.exp(float(params["logit_scale"]))
    losses = []
    for rows in (order[:16], order[16:]):
        names = [source.annotation(int(row))["name"] for row in rows]
        tokens = experiment.tokenizer([f"the digit {name}" for name in names])
        images = jnp.asarray(images_of(experiment, rows))
        images = np.asarray(model.encode_image(images), np.float64)
        texts = np.asarray(model.encode_text(jnp.asarray(tokens)), np.float64)
        images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
        logits = scale * images @ texts.T
        by_image, by_text = (log_softmax(logits, axis=axis).diagonal() for axis in (1, 0))
        losses.append(-(by_image + by_text).mean() / 2)
    found = evaluated(experiment, params, examples=40, templates=("the digit {}",))
    assert abs(found["loss"] - np.mean(losses)) < 1e-5
    assert "logit_scale" in found


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"examples": 400}, "examples=400: digits:test has 359 examples"),
        ({"batch_size": -1}, "batch_size=-1: expected 1 or more examples"),
        ({"data": "emoji:heldout_names"}, "classes, the model has 10 outputs"),
        ({"templates": ("a",)}, "expected exactly one {}"),
    ],
)
def test_wrong_blocks(keys, message):
    experiment, params = opened(classifier(), 8)
    with pytest.raises(UserError, match=message):
        evaluated(experiment, params, **keys)


def test_a_contrastive_loss_needs_one_whole_batch(tiny_config):
    experiment, params = opened(tiny_config, 8)
    with pytest.raises(UserError, match="needs whole batches of 16 examples, digits:test has 8"):
        evaluated(experiment, params, examples=8)
