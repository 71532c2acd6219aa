"""DINO, iBOT, Sinkhorn-Knopp, centring and KoLeo against NumPy in float64, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.objectives.self_distillation.assignment import (
    centred,
    cross_entropy,
    moved_centre,
    sinkhorn,
    split_prototypes,
)
from vit_jax.objectives.self_distillation.koleo import koleo
from vit_jax.parallel.mesh import batch_sharding, make_mesh

BATCH, WIDTH, PROTOTYPES, BLOCK = 16, 6, 24, 8
TAUGHT, LEARNT = 0.07, 0.1  # temperatures


def on_eight_devices(x):
    return jax.device_put(x, batch_sharding(make_mesh(devices=jax.devices())))


PLACES = (jnp.asarray, pytest.param(on_eight_devices, marks=pytest.mark.release))


def unit(*shape, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


TEACHER, STUDENT = unit(BATCH, 2, WIDTH, seed=0), unit(BATCH, 5, WIDTH, seed=1)
KERNELS = unit(PROTOTYPES, WIDTH, seed=2).T, unit(PROTOTYPES, WIDTH, seed=3).T
WEIGHT = (np.arange(2 * BATCH).reshape(BATCH, 2) % 3 > 0).astype(np.float64)
CENTRE = np.random.default_rng(4).normal(size=PROTOTYPES) * 0.1


def published_sinkhorn(logits, iterations=3):
    """The loop of SwAV's and DINOv2's code, on one device; (tokens, prototypes)."""
    q = np.exp(logits / TAUGHT).T
    prototypes, tokens = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * prototypes
        q /= q.sum(axis=0, keepdims=True) * tokens
    return (q * tokens).T


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected_probabilities(kind):
    logits = TEACHER @ KERNELS[1]
    if kind == "centred":
        return softmax((logits - CENTRE) / TAUGHT)
    valid = WEIGHT.ravel() > 0 if kind == "padded" else np.ones(2 * BATCH, bool)
    found = np.zeros((2 * BATCH, PROTOTYPES))
    found[valid] = published_sinkhorn(logits.reshape(-1, PROTOTYPES)[valid])
    return found.reshape(logits.shape)


def assign(kind, tokens, kernel):
    blocks, temperature = split_prototypes(kernel, BLOCK), jnp.float32(TAUGHT)
    if kind == "centred":
        return centred(tokens, blocks, temperature, jnp.asarray(CENTRE, jnp.float32))
    weight = jnp.asarray(WEIGHT, jnp.float32) if kind == "padded" else None
    return sinkhorn(tokens, blocks, temperature, 3, weight)


def of_crops(p):
    """Each global crop follows the other one, each local crop follows both."""
    both = jnp.broadcast_to(p.sum(1, keepdims=True), (len(p), 3, p.shape[-1]))
    return jnp.concatenate([p[:, ::-1], both], axis=1)


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def class_loss(student, own, tokens, theirs, kind):
    taught = assign(kind, tokens, theirs)
    return cross_entropy(student, split_prototypes(own, BLOCK), LEARNT, taught, of_crops).sum()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["centred", "sinkhorn"])
def test_loss_and_gradients_of_crops(kind, place):
    """Against the published arithmetic, the sum over pairs of a teacher's and another crop."""
    p = expected_probabilities(kind)
    q = softmax(STUDENT @ KERNELS[0] / LEARNT)
    pairs = [(t, s) for t in range(2) for s in range(5) if s != t]
    expected = sum(-(p[:, t] * np.log(q[:, s])).sum() for t, s in pairs)
    by_logit = np.zeros_like(q)
    for t, s in pairs:
        by_logit[:, s] += (p[:, t].sum(-1, keepdims=True) * q[:, s] - p[:, t]) / LEARNT
    by_student = by_logit @ KERNELS[0].T
    by_kernel = np.einsum("bvd,bvk->dk", STUDENT, by_logit)

    student, own, tokens, theirs = float32(STUDENT, KERNELS[0], TEACHER, KERNELS[1])
    step = jax.jit(jax.value_and_grad(class_loss, argnums=(0, 1)), static_argnames="kind")
    loss, gradients = step(place(student), own, place(tokens), theirs, kind=kind)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    for found, gradient in zip(gradients, (by_student, by_kernel), strict=True):
        np.testing.assert_allclose(found, gradient, atol=3e-5 * np.abs(gradient).max())


def test_padding_takes_no_part_in_the_balance():
    weight = WEIGHT[..., None]
    tokens = jnp.where(weight > 0, *float32(TEACHER, 0.5))
    taught = assign("padded", tokens, *float32(KERNELS[1]))
    found = probabilities(taught) * weight
    np.testing.assert_allclose(found, expected_probabilities("padded"), atol=2e-6)


def test_no_matrix_of_tokens_and_prototypes():
    """The step needs less than half of the memory of one float32 matrix."""
    tokens, prototypes, width, block = 256, 8192, 8, 256

    def loss(student, own, theirs):
        taught = sinkhorn(student, split_prototypes(theirs, block), jnp.float32(TAUGHT), 3)
        return cross_entropy(student, split_prototypes(own, block), LEARNT, taught).sum()

    kernel = jax.ShapeDtypeStruct((width, prototypes), jnp.float32)
    student = jax.ShapeDtypeStruct((tokens, width), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(student, kernel, kernel)
    assert step.compile().memory_analysis().temp_size_in_bytes < 4 * tokens * prototypes / 2


def probabilities(taught):
    """The whole matrix of an assignment, (*tokens, prototypes)."""
    logits = jnp.einsum("btd,ndk->nbtk", taught.tokens, taught.blocks) / taught.temperature
    p = jnp.exp(logits + taught.rows[..., None] + taught.columns[:, None, None])
    return jnp.moveaxis(p, 0, -2).reshape(*taught.rows.shape, -1)


def test_sinkhorn_does_not_overflow():
    """exp(z / T) of the published code is infinite here, beyond float32."""
    (tokens, kernel) = float32(TEACHER, KERNELS[1])
    taught = sinkhorn(tokens, split_prototypes(kernel, PROTOTYPES), jnp.float32(0.005), 3)
    np.testing.assert_allclose(probabilities(taught).sum(-1), 1, rtol=1e-4)


def test_the_centre_moves_towards_the_mean_logits():
    (tokens, kernel, weight, old) = float32(TEACHER, KERNELS[1], WEIGHT, CENTRE)
    logits = (TEACHER @ KERNELS[1]).reshape(-1, PROTOTYPES)
    for given, mean in (
        (None, logits.mean(0)),
        (weight, np.average(logits, axis=0, weights=WEIGHT.ravel())),
    ):
        found = moved_centre(old, tokens, kernel, 0.9, given)
        np.testing.assert_allclose(found, 0.9 * CENTRE + 0.1 * mean, atol=1e-6)


def expected_koleo(x):
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1) + 10 * np.eye(len(x))
    return -np.log(distances.min(1)).mean()


@pytest.mark.parametrize("place", PLACES)
def test_koleo_and_its_gradient(place):
    x = np.random.default_rng(5).normal(size=(BATCH, WIDTH))
    step = jax.jit(jax.value_and_grad(koleo))
    loss, gradient = step(place(x.astype(np.float32)))
    np.testing.assert_allclose(loss, expected_koleo(x), rtol=1e-5)
    for i, j in ((0, 0), (3, 5), (15, 2)):
        moved = np.zeros_like(x)
        moved[i, j] = 1e-6
        slope = (expected_koleo(x + moved) - expected_koleo(x - moved)) / 2e-6
        np.testing.assert_allclose(gradient[i, j], slope, rtol=1e-3, atol=1e-5)
    _, gradient = step(place(np.ones_like(x, np.float32)))  # all features are equal
    assert np.isfinite(gradient).all()
