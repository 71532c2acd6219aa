"""CoCa's two losses against NumPy in float64, with its mask of padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from contexts import build, context, random_images, small_vit, step_on_devices

from tests.caption_reference import attend, layer, layer_norm, log_softmax
from vit_jax.errors import UserError
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.clip_captioner.model import CLIPCaptionerConfig
from vit_jax.models.coca.model import CoCaConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.decoder import DecoderConfig

IMAGES, LENGTH, VOCABULARY = 16, 5, 13
SIZES = {"vocab_size": VOCABULARY, "context_length": LENGTH, "width": 8, "num_heads": 2}
TEXT = TextConfig(**SIZES, depth=1, mlp_dim=12, activation="gelu_tanh", pool="last")
COCA = CoCaConfig(
    image=small_vit(pool="none", pre_norm=True),
    text=TEXT,
    decoder=DecoderConfig(
        **SIZES, depth=1, mlp_dim=12, norm_epsilon=1e-5, use_bias=True, interleaved=True
    ),
    embed_dim=8,
    num_queries=4,
    pooler_heads=2,
)


def captions():
    """From the end of the text alone to a whole row, then padding; the start comes first."""
    tokens = np.random.default_rng(0).integers(2, VOCABULARY, (IMAGES, LENGTH))
    tokens[:, 0] = 1
    counts = np.arange(IMAGES) % (LENGTH - 1) + 2
    return (tokens * (np.arange(LENGTH) < counts[:, None])).astype(np.int32)


def mlp(x, params):
    hidden = x @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"]


def norm(x, params):
    return layer_norm(x, params, 1e-5)


def read_text(params, tokens):
    """Pooled, projected text (D,) and the states of the tokens (T, D) of one caption."""
    text, count = params["text"], int(np.sum(tokens != 0))
    x = np.concatenate([text["token_embed"]["embedding"][tokens], text["class_token"]])
    x = x + text["positions"]
    block = layer(text["blocks"]["blocks"], 0)
    allowed = np.tri(LENGTH + 1)
    # The class token attends to the real tokens and to the one after them.
    allowed[-1, count + 1 :] = 0
    x = x + attend(norm(x, block["norm1"]), norm(x, block["norm1"]), block["attention"], allowed)
    x = x + mlp(norm(x, block["norm3"]), block["mlp"])
    return norm(x[-1], text["norm"]) @ params["text_projection"]["kernel"], x[:-1]


def decode(params, states, memory):
    """Log-probabilities (T - 1, V) of the tokens after the first."""
    decoder, x = params["decoder"], states[:-1]
    block = layer(decoder["blocks"]["blocks"], 0)
    own, everywhere = norm(x, block["norm1"]), np.ones((len(x), len(memory)))
    x = x + attend(own, own, block["attention"], np.tri(len(x)))
    x = x + mlp(norm(x, block["own_norm"]), block["own_mlp"])
    keys = norm(memory, block["memory_norm"])
    x = x + attend(norm(x, block["norm2"]), keys, block["cross_attention"], everywhere)
    x = x + mlp(norm(x, block["norm3"]), block["mlp"])
    return log_softmax(norm(x, decoder["norm"]) @ decoder["head"]["kernel"])


def losses(params, queries, tokens):
    """Contrastive loss, mean loss of the tokens of the batch, and their accuracy."""
    images = queries[:, 0] @ params["image_projection"]["kernel"]
    texts, nats, correct = [], [], []
    for caption, own in zip(tokens, queries, strict=True):
        text, states = read_text(params, caption)
        texts.append(text)
        found = decode(params, states, own[1:])
        for label, row in zip(caption[1:], found, strict=True):
            if label != 0:
                nats.append(-row[label])
                correct.append(row.argmax() == label)
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, np.asarray(texts)))
    scale = np.exp(params["logit_scale"])
    return reference.contrastive(*unit, scale, 0.0, "softmax").loss, np.mean(nats), np.mean(correct)


def random_tree(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(scale=0.4, size=np.shape(x)), shapes)


def random_model():
    model = ModelDef(COCA)
    params = random_tree(model.shapes())
    single = jax.tree.map(jnp.float32, params)
    seen = jnp.asarray(random_images(IMAGES)[1], jnp.float32)
    queries = jax.jit(lambda p: model.bind(p).image.encode_queries(seen))(single)
    batch = {"image": np.asarray(random_images(IMAGES)[0]), "tokens": captions()}
    return model, params, single, np.float64(queries), batch


def assert_losses(found, expected):
    loss, metrics = found
    names = ("contrastive_loss", "caption_loss", "token_accuracy")
    np.testing.assert_allclose([metrics[name] for name in names], expected, rtol=1e-5)
    np.testing.assert_allclose(loss, expected[0] + 2 * expected[1], rtol=1e-5)


def test_losses_of_coca():
    model, params, single, queries, batch = random_model()
    objective = build("contrastive_captioning", context(COCA), chunk_tokens=7)
    found = jax.jit(lambda p, batch: objective.evaluate(model.bind(p), batch))(single, batch)
    assert_losses(found, losses(params, queries, batch["tokens"]))


@pytest.mark.release
@pytest.mark.parametrize(("devices", "steps"), [(1, 1), (8, 2)])
def test_gradients_of_coca(devices, steps):
    _, params, single, queries, batch = random_model()
    ctx = context(COCA, microbatches=(steps, devices))
    objective = build("contrastive_captioning", ctx, chunk_tokens=3)
    found, gradients = step_on_devices(objective, single, batch, devices)
    assert_losses(found, losses(params, queries, batch["tokens"]))
    # Everything except the image tower, along a random direction.
    direction = random_tree(params, seed=1)
    direction["image"] = jax.tree.map(np.zeros_like, direction["image"])
    ends = []
    for step in (1e-5, -1e-5):
        moved = jax.tree.map(lambda x, d, step=step: x + step * d, params, direction)
        ends.append(np.dot(losses(moved, queries, batch["tokens"])[:2], (1, 2)))
    parts = jax.tree.map(lambda g, d: np.sum(np.float64(g) * d), gradients, direction)
    slope = (ends[0] - ends[1]) / 2e-5
    assert sum(jax.tree.leaves(parts)) == pytest.approx(slope, rel=1e-4)
    assert all(np.any(x) for x in jax.tree.leaves(gradients))


def test_errors():
    with pytest.raises(UserError, match="needs a dual encoder with a decoder of captions, as coca"):
        build("contrastive_captioning", context(small_vit()))
    with pytest.raises(UserError, match=r"parallel_fraction=0\.5: the decoder of CoCaConfig reads"):
        build("contrastive_captioning", context(COCA), parallel_fraction=0.5)
    with pytest.raises(UserError, match=r"a ViT with image\.pool='none'"):
        CoCaConfig(image=small_vit(), text=TEXT, decoder=COCA.decoder)
    with pytest.raises(UserError, match="expected those of the text tower, 13 and 5"):
        CLIPCaptionerConfig(image=small_vit(), text=TEXT)
