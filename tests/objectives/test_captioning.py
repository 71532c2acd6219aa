"""The captioning loss against NumPy in float64: masks, padding, devices, and its memory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import build, context, random_images, small_vit, step_on_devices

from tests.caption_reference import caption_means
from vit_jax.errors import UserError
from vit_jax.models.cappa.model import CapPaConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.objectives.token_loss import caption_sums, token_losses

IMAGES, LENGTH, VOCABULARY = 16, 5, 11
DECODER = DecoderConfig(
    vocab_size=VOCABULARY, context_length=LENGTH, width=8, depth=2, num_heads=2, mlp_dim=12
)
CAPPA = CapPaConfig(image=small_vit(class_token=False, pool="mean"), decoder=DECODER)


def captions():
    """From one token to a whole row, then padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, (IMAGES, LENGTH))
    counts = np.arange(IMAGES) % LENGTH + 1
    return (tokens * (np.arange(LENGTH) < counts[:, None])).astype(np.int32)


def random_params(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(scale=0.4, size=x.shape), shapes)


def on_devices(model, params, devices, steps):
    """Loss, metrics and gradients, and the examples that were predicted in parallel."""
    ctx = context(CAPPA, microbatches=(steps, devices))
    objective = build("captioning", ctx, parallel_fraction=0.4, chunk_tokens=3)
    batch = {"image": np.asarray(random_images(IMAGES)[0]), "tokens": captions()}
    parallel = jax.random.bernoulli(jax.random.split(jax.random.key(1))[0], 0.4, (IMAGES,))
    return step_on_devices(objective, params, batch, devices), np.asarray(parallel)


class Run(NamedTuple):
    """A model with random parameters, and the loss of a batch on 8 devices in 2 microbatches."""

    model: ModelDef
    params: Any
    memory: Any
    parallel: Any
    found: Any


@pytest.fixture(scope="module")
def run():
    model = ModelDef(CAPPA)
    params = jax.tree.map(jnp.float32, random_params(model.shapes()))
    found, parallel = on_devices(model, params, 8, 2)
    seen = jnp.asarray(random_images(IMAGES)[1], jnp.float32)
    memory = jax.jit(lambda p: model.bind(p).encode_memory(seen))(params)
    return Run(model, params, memory, parallel, found)


def test_losses_and_gradients(run):
    tokens, parallel = captions(), jnp.asarray(run.parallel)
    assert 0 < run.parallel.mean() < 1

    def mean(decoder, memory):
        bound = run.model.bind({**run.params, "decoder": decoder})
        states = bound.caption_states(jnp.asarray(tokens), memory, parallel)
        sums = caption_sums(bound, jnp.asarray(tokens), states, chunk=7)
        found = sums[:, :2] / sums[:, 2:]
        return jnp.mean(found[:, 0]), found

    arguments = run.params["decoder"], run.memory
    gradients, found = jax.jit(jax.grad(mean, argnums=(0, 1), has_aux=True))(*arguments)
    exact = jax.tree.map(np.float64, arguments)
    expected = caption_means(exact[0], tokens, exact[1], run.parallel)
    np.testing.assert_allclose(found, expected, rtol=2e-5)

    direction = random_params(jax.tree.map(np.asarray, exact), seed=1)
    ends = []
    for step in (1e-5, -1e-5):
        moved = jax.tree.map(lambda x, d, step=step: x + step * d, exact, direction)
        ends.append(caption_means(moved[0], tokens, moved[1], run.parallel)[:, 0].mean())
    parts = jax.tree.map(lambda g, d: np.sum(np.float64(g) * d), gradients, direction)
    slope = (ends[0] - ends[1]) / 2e-5
    assert sum(jax.tree.leaves(parts)) == pytest.approx(slope, rel=1e-4)
    assert all(np.any(x) for x in jax.tree.leaves(gradients))

    # The same on 8 devices, in microbatches and smaller chunks.
    (loss, metrics), whole = run.found
    found = loss, metrics["token_accuracy"]
    np.testing.assert_allclose(found, expected.mean(axis=0), rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, whole["decoder"], gradients[0])


@pytest.mark.release
def test_one_device(run):
    found, _ = on_devices(run.model, run.params, 1, 1)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found, run.found)


def test_held_out_captions_are_autoregressive(run):
    model = run.model.bind(run.params)
    model.encode_memory = lambda images, rng: run.memory
    objective, weight = build("captioning", context(CAPPA)), np.arange(IMAGES) < 11
    batch = {"image": random_images(IMAGES)[0], "tokens": jnp.asarray(captions())}
    batch["weight"] = jnp.asarray(weight, jnp.float32)
    loss, _ = jax.jit(lambda batch: objective.evaluate(model, batch))(batch)
    exact = jax.tree.map(np.float64, (run.params["decoder"], run.memory))
    expected = caption_means(exact[0], captions(), exact[1], np.zeros(IMAGES, bool))
    np.testing.assert_allclose(loss, expected[weight, 0].mean(), rtol=1e-5)


def test_logits_exist_in_parts():
    """The gradient's temporaries are a fraction of batch x length x vocabulary in float32."""
    batch, length, width, vocabulary = 8, 32, 8, 4096
    whole = batch * length * vocabulary * 4

    def temporaries(chunk):
        def loss(states, kernel, bias, labels):
            return jnp.mean(token_losses(states, kernel, bias, labels, chunk=chunk).losses)

        shapes = (batch, length, width), (width, vocabulary), (vocabulary,)
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        labels = jax.ShapeDtypeStruct((batch, length), jnp.int32)
        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        compiled = step.lower(*arguments, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(batch * length) > whole
    assert temporaries(16) < whole / 4


def test_errors():
    with pytest.raises(UserError, match="needs a model with a decoder of captions, as cappa_b16"):
        build("captioning", context(small_vit()))
    with pytest.raises(UserError, match=r"parallel_fraction=1\.5: expected a number of at least 0"):
        build("captioning", context(CAPPA), parallel_fraction=1.5)
    with pytest.raises(UserError, match=r"set image\.num_classes=0 and"):
        CapPaConfig(image=small_vit(num_classes=3))
    with pytest.raises(UserError, match="num_heads=3 does not divide width=8"):
        DecoderConfig(width=8, num_heads=3)


def test_a_caption_that_is_too_long(run):
    decoder = run.model.bind(run.params).decoder
    with pytest.raises(UserError, match="found 6 tokens per caption, the decoder expects at most"):
        decoder(jnp.ones((1, 6), jnp.int32), jnp.zeros((1, 2, 16)))
