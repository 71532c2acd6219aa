"""Cross-entropies, smoothing, mixup and cutmix against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax

from vit_jax.errors import UserError
from vit_jax.objectives.classification import (
    LOSSES,
    Classification,
    cross_entropy,
    cutmix,
    mixup,
    smooth_labels,
)
from vit_jax.objectives.microbatches import Microbatches


def logits_and_targets(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(8, 5)) * 3, rng.dirichlet(np.ones(5), size=8)


def reference(logits, targets, loss):
    if loss == "softmax":
        return -(targets * log_softmax(logits, axis=1)).sum(1).mean()
    p = expit(logits)
    return -(targets * np.log(p) + (1 - targets) * np.log1p(-p)).sum(1).mean()


@pytest.mark.parametrize("loss", LOSSES)
def test_cross_entropy_and_its_gradient(loss):
    logits, targets = logits_and_targets()
    value, gradient = jax.value_and_grad(cross_entropy)(
        jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32), loss
    )
    np.testing.assert_allclose(value, reference(logits, targets, loss), rtol=1e-6)
    # d/dz of softmax's is p sum(t) - t, of the sigmoids' p - t, over the batch.
    p = np.exp(log_softmax(logits, axis=1)) if loss == "softmax" else expit(logits)
    np.testing.assert_allclose(gradient, (p - targets) / 8, rtol=1e-5, atol=1e-7)


def test_smoothing():
    found = smooth_labels(jnp.asarray([2, 0]), 4, 0.1)
    np.testing.assert_allclose(
        found, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6
    )


def pictures(count=6):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 8, 12, 3)).astype(np.float32)
    return images, np.eye(4, dtype=np.float32)[rng.integers(4, size=count)]


def test_mixup_blends_pictures_and_labels_by_one_share():
    images, targets = pictures()
    shares = []
    for seed in range(200):
        mixed, labels = mixup(images, targets, 0.8, jax.random.key(seed))
        # The share, read off one pixel, explains all of them and the labels.
        share = float((mixed[0, 0, 0, 0] - images[5, 0, 0, 0]) / (images[0] - images[5])[0, 0, 0])
        np.testing.assert_allclose(
            mixed, share * images + (1 - share) * images[::-1], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            labels, share * targets + (1 - share) * targets[::-1], rtol=1e-4, atol=1e-5
        )
        shares.append(share)
    # Beta(0.8, 0.8) has mean 1/2 and variance 1 / (4 (2 * 0.8 + 1)).
    assert abs(np.mean(shares) - 0.5) < 4 * 0.31 / np.sqrt(200)
    assert np.var(shares) == pytest.approx(1 / (4 * 2.6), rel=0.25)


def test_cutmix_pastes_one_box_and_counts_its_area():
    images, targets = pictures()
    areas = []
    for seed in range(200):
        mixed, labels = cutmix(images, targets, 1.0, jax.random.key(seed))
        pasted = (np.asarray(mixed) == images[::-1]).all(-1)
        kept = (np.asarray(mixed) == images).all(-1)
        assert (pasted ^ kept).all()
        assert (pasted == pasted[:1]).all()  # the same box in all
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
    """A classifier of flattened images."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, images, rng=None):
        return images.reshape(len(images), -1) @ self.weights


def objective(loss="softmax", parts=None, **changes):
    return Classification(loss, num_classes=4, prepare=lambda x: x / 2, parts=parts, **changes)


def test_loss_of_a_batch_and_its_accuracy():
    images, targets = pictures()
    weights = np.random.default_rng(1).normal(size=(288, 4)).astype(np.float32)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(targets.argmax(1))}
    loss, metrics = objective(label_smoothing=0.1)(Linear(weights), batch, jax.random.key(0))
    logits = images.reshape(6, -1).astype(np.float64) / 2 @ weights
    np.testing.assert_allclose(loss, reference(logits, targets * 0.9 + 0.025, "softmax"), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["accuracy"], (logits.argmax(1) == targets.argmax(1)).mean(), rtol=1e-6
    )


def test_each_batch_draws_mixup_or_cutmix():
    images, targets = pictures()
    both = objective(mixup_alpha=0.8, cutmix_alpha=1.0)
    kinds = set()
    for seed in range(12):
        mixed, _ = both._mix(jnp.asarray(images), jnp.asarray(targets), jax.random.key(seed))
        whole = (np.asarray(mixed) == images) | (np.asarray(mixed) == images[::-1])
        kinds.add(bool(whole.all()))
    assert kinds == {True, False}


def test_unknown_loss():
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        objective("sigmoids")


def test_parts_must_not_change_the_loss():
    """Through a real model, whose parts are cut from every device's rows."""
    from tests.models.test_families import SMALL, random_params
    from vit_jax.models.definition import ModelDef
    from vit_jax.models.vit.model import ViTConfig

    model = ModelDef(ViTConfig(**SMALL, num_classes=4))
    params = random_params(model)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.normal(size=(12, 16, 16, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(4, size=12)),
    }

    def run(parts):
        def loss(params):
            return objective(parts=parts, label_smoothing=0.1)(
                model.bind(params), batch, jax.random.key(0)
            )[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    expected, found = run(None), run(Microbatches(steps=3, shards=2))
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected[1]))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale),
        found[1],
        expected[1],
    )
