"""The captioning loss against NumPy in float64: masks, padding, devices, and its memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import SIZE, build, context, random_images, small_vit, step_on_devices
from flax import nnx

from tests.caption_reference import caption_means
from vit_jax.errors import UserError
from vit_jax.models.cappa.model import CapPaConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.caption_decoder import CaptionDecoder
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.objectives.token_loss import token_losses

IMAGES, LENGTH, VOCABULARY = 16, 5, 11
DECODER = DecoderConfig(
    vocab_size=VOCABULARY, context_length=LENGTH, width=8, depth=2, num_heads=2, mlp_dim=12
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """The decoder with a linear layer in place of the encoder: each row of pixels is a patch."""

    image_size: tuple[int, int] = SIZE
    decoder: DecoderConfig = DECODER

    def make(self, **execution: Any) -> "Reader":
        return Reader(self, execution["rngs"])


class Reader(nnx.Module):
    num_given = 0

    def __init__(self, config, rngs):
        self.rows = nnx.Linear(SIZE[1] * 3, 6, rngs=rngs)
        self.decoder = CaptionDecoder(config.decoder, 6, rngs=rngs)

    def layers_above(self):
        return {}

    def encode_memory(self, images, *, rng=None):
        return self.rows(images.reshape(*images.shape[:2], -1))

    def caption_states(self, tokens, memory, parallel=None):
        return self.decoder(tokens, memory, parallel)


READER = ReaderConfig()


def captions():
    """From one token to a whole row, then padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, (IMAGES, LENGTH))
    counts = np.arange(IMAGES) % LENGTH + 1
    return (tokens * (np.arange(LENGTH) < counts[:, None])).astype(np.int32)


def random_params(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(scale=0.4, size=np.shape(x)), shapes)


def means(params, parallel):
    """Loss and accuracy of each caption, float64."""
    rows = random_images(IMAGES)[1].reshape(IMAGES, SIZE[0], -1)
    memory = rows @ params["rows"]["kernel"] + params["rows"]["bias"]
    return caption_means(params["decoder"], captions(), memory, parallel)


@pytest.mark.parametrize(
    ("devices", "steps"), [(8, 2), pytest.param(1, 1, marks=pytest.mark.release)]
)
def test_losses_and_gradients(devices, steps):
    model = ModelDef(READER)
    params = random_params(model.shapes())
    ctx = context(READER, microbatches=(steps, devices))
    objective = build("captioning", ctx, parallel_fraction=0.4, chunk_tokens=3)
    batch = {"image": np.asarray(random_images(IMAGES)[0]), "tokens": captions()}
    single = jax.tree.map(np.float32, params)
    (loss, metrics), gradients = step_on_devices(objective, single, batch, devices)
    # The examples that were predicted in parallel.
    drawn = jax.random.bernoulli(jax.random.split(jax.random.key(1))[0], 0.4, (IMAGES,))
    parallel = np.asarray(drawn)
    assert 0 < parallel.mean() < 1
    expected = means(params, parallel).mean(axis=0)
    np.testing.assert_allclose([loss, metrics["token_accuracy"]], expected, rtol=2e-5)

    direction = random_params(params, seed=1)
    ends = []
    for step in (1e-5, -1e-5):
        moved = jax.tree.map(lambda x, d, step=step: x + step * d, params, direction)
        ends.append(means(moved, parallel)[:, 0].mean())
    parts = jax.tree.map(lambda g, d: np.sum(np.float64(g) * d), gradients, direction)
    slope = (ends[0] - ends[1]) / 2e-5
    assert sum(jax.tree.leaves(parts)) == pytest.approx(slope, rel=1e-4)
    assert all(np.any(x) for x in jax.tree.leaves(gradients))


def test_held_out_captions_are_autoregressive():
    model = ModelDef(READER)
    params = random_params(model.shapes())
    objective, weight = build("captioning", context(READER)), np.arange(IMAGES) < 11
    batch = {"image": random_images(IMAGES)[0], "tokens": jnp.asarray(captions())}
    batch["weight"] = jnp.asarray(weight, jnp.float32)
    bound = model.bind(jax.tree.map(jnp.float32, params))
    loss, _ = jax.jit(lambda batch: objective.evaluate(bound, batch))(batch)
    expected = means(params, np.zeros(IMAGES, bool))
    np.testing.assert_allclose(loss, expected[weight, 0].mean(), rtol=2e-5)


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
        build("captioning", context(READER), parallel_fraction=1.5)
    with pytest.raises(UserError, match=r"set image\.num_classes=0 and"):
        CapPaConfig(image=small_vit(num_classes=3))
    with pytest.raises(UserError, match="num_heads=3 does not divide width=8"):
        DecoderConfig(width=8, num_heads=3)


def test_a_caption_that_is_too_long():
    model = ModelDef(READER)
    decoder = model.bind(model.shapes()).decoder
    with pytest.raises(UserError, match="found 6 tokens per caption, the decoder expects at most"):
        decoder(jnp.ones((1, 6), jnp.int32), jnp.zeros((1, 2, 6)))
