"""Cross-entropies, smoothing, mixup and cutmix against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import build, context, random_images, small_vit
from scipy.special import expit, log_softmax

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.objectives.classification import LOSSES, cross_entropy, cutmix, mixup, smooth_labels

CLASSES = 4


def logits_and_targets(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(8, 5)) * 3, rng.dirichlet(np.ones(5), size=8)


def reference(logits, targets, loss, weight=None):
    if loss == "softmax":
        losses = -(targets * log_softmax(logits, axis=1)).sum(1)
    else:
        p = expit(logits)
        losses = -(targets * np.log(p) + (1 - targets) * np.log1p(-p)).sum(1)
    return np.average(losses, weights=weight)


@pytest.mark.parametrize("loss", LOSSES)
def test_cross_entropy_and_its_gradient(loss):
    logits, targets = logits_and_targets()
    value, gradient = jax.value_and_grad(cross_entropy)(
        jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32), loss
    )
    np.testing.assert_allclose(value, reference(logits, targets, loss), rtol=1e-6)
    # The derivative of softmax's is p sum(t) - t, of the sigmoids' p - t, over the batch.
    p = np.exp(log_softmax(logits, axis=1)) if loss == "softmax" else expit(logits)
    np.testing.assert_allclose(gradient, (p - targets) / 8, rtol=1e-5, atol=1e-7)


def test_smoothing():
    found = smooth_labels(jnp.asarray([2, 0]), 4, 0.1)
    np.testing.assert_allclose(
        found, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6
    )


def images_and_targets(count=6):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 8, 12, 3)).astype(np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=count)]
    return jnp.asarray(images), jnp.asarray(targets)


def test_mixup_blends_images_and_labels_by_one_fraction():
    images, targets = images_and_targets()
    fractions = []
    for seed in range(200):
        mixed, labels = mixup(images, targets, 0.8, jax.random.key(seed))
        # The fraction, computed from one pixel, explains all of them and the labels.
        fraction = float(
            (mixed[0, 0, 0, 0] - images[5, 0, 0, 0]) / (images[0] - images[5])[0, 0, 0]
        )
        np.testing.assert_allclose(
            mixed, fraction * images + (1 - fraction) * images[::-1], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            labels, fraction * targets + (1 - fraction) * targets[::-1], rtol=1e-4, atol=1e-5
        )
        fractions.append(fraction)
    # Beta(0.8, 0.8) has mean 1/2 and variance 1 / (4 (2 * 0.8 + 1)).
    assert abs(np.mean(fractions) - 0.5) < 4 * 0.31 / np.sqrt(200)
    assert np.var(fractions) == pytest.approx(1 / (4 * 2.6), rel=0.25)


def test_cutmix_pastes_one_box_and_counts_its_area():
    images, targets = images_and_targets()
    areas = []
    for seed in range(200):
        mixed, labels = cutmix(images, targets, 1.0, jax.random.key(seed))
        pasted = (np.asarray(mixed) == np.asarray(images)[::-1]).all(-1)
        kept = (np.asarray(mixed) == np.asarray(images)).all(-1)
        assert (pasted ^ kept).all()
        assert (pasted == pasted[:1]).all()  # the same box in all images
        rows, columns = pasted[0].any(1), pasted[0].any(0)
        np.testing.assert_array_equal(pasted[0], rows[:, None] & columns)  # a rectangle
        area = pasted[0].mean()
        np.testing.assert_allclose(
            labels, (1 - area) * targets + area * targets[::-1], rtol=1e-5, atol=1e-6
        )
        areas.append(area)
    assert min(areas) < 0.05
    assert max(areas) > 0.4


class Linear:
    """A classifier of flattened images that records the keys it is called with."""

    def __init__(self, weights):
        self.weights, self.rngs = weights, []

    def __call__(self, images, rng=None):
        self.rngs.append(rng)
        return images.reshape(len(images), -1) @ self.weights


def objective(loss="softmax", microbatches=(1, 1), **keys):
    where = context(small_vit(num_classes=CLASSES), microbatches=microbatches)
    return build("classification", where, loss=loss, **keys)


def linear_and_batch(count=6):
    packed, seen = random_images(count)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(seen[0].size, CLASSES)).astype(np.float32) / 10
    labels = rng.integers(CLASSES, size=count)
    logits = seen.reshape(count, -1) @ weights.astype(np.float64)
    return (
        Linear(jnp.asarray(weights)),
        {"image": packed, "label": jnp.asarray(labels, jnp.int32)},
        logits,
        np.eye(CLASSES)[labels],
    )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_a_batch_and_its_accuracy(name):
    model, batch, logits, targets = linear_and_batch()
    loss, metrics = objective(name, label_smoothing=0.1)(model, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, reference(logits, targets * 0.9 + 0.025, name), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["accuracy"], (logits.argmax(1) == targets.argmax(1)).mean(), rtol=1e-6
    )


def test_evaluation_neither_mixes_nor_smooths():
    model, batch, logits, targets = linear_and_batch()
    trained = objective(label_smoothing=0.1, mixup_alpha=0.8, cutmix_alpha=1.0, microbatches=(3, 1))
    loss, _ = trained.evaluate(model, batch)
    np.testing.assert_allclose(loss, reference(logits, targets, "softmax"), rtol=1e-5)
    assert model.rngs == [None]


def test_padding_has_no_weight():
    model, batch, logits, targets = linear_and_batch()
    weight = np.asarray([1, 1, 0, 1, 1, 0], np.float32)
    loss, metrics = objective().evaluate(model, {**batch, "weight": jnp.asarray(weight)})
    np.testing.assert_allclose(loss, reference(logits, targets, "softmax", weight), rtol=1e-5)
    correct = logits.argmax(1) == targets.argmax(1)
    np.testing.assert_allclose(metrics["accuracy"], np.average(correct, weights=weight), rtol=1e-6)


def test_each_batch_draws_mixup_or_cutmix():
    packed, seen = random_images()
    mix = jax.jit(objective(mixup_alpha=0.8, cutmix_alpha=1.0).mixed)
    batch = {"image": packed, "label": jnp.zeros(6, jnp.int32)}
    kinds = set()
    for seed in range(12):
        mixed = np.asarray(mix(batch, jax.random.key(seed))[0])
        whole = np.isclose(mixed, seen, atol=1e-5) | np.isclose(mixed, seen[::-1], atol=1e-5)
        kinds.add(bool(whole.all()))
    assert kinds == {True, False}


def test_unknown_loss():
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        objective("sigmoids")


def test_a_key_of_another_objective():
    with pytest.raises(
        UserError,
        match=r"config\.objective\.mask_ratio does not apply to the objective 'classification': it "
        "is a key of masked_reconstruction",
    ):
        objective(mask_ratio=0.5)


def test_a_model_without_classes():
    text = TextConfig(vocab_size=10, context_length=4, width=8, depth=1, num_heads=2, mlp_dim=8)
    for architecture in (small_vit(), CLIPConfig(image=small_vit(), text=text, embed_dim=8)):
        with pytest.raises(UserError, match="needs a model with a classification head"):
            build("classification", context(architecture))


def test_microbatches_do_not_change_the_loss():
    """Through a model with weights, whose microbatches are cut from every device's rows."""
    where = context(small_vit(num_classes=CLASSES))
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32), where.model.shapes()
    )
    _, batch, _, _ = linear_and_batch(12)

    def run(microbatches):
        cut = objective(label_smoothing=0.1, microbatches=microbatches)

        def loss(params):
            return cut(where.model.bind(params), batch, jax.random.key(0))[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    expected, found = run((1, 1)), run((3, 2))
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected[1]))
    assert scale > 0.01
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale),
        found[1],
        expected[1],
    )
