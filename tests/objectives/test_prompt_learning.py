"""Learned prompts (CoOp): the tower with words as its prompt, the loss, and that it is learned."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contexts import build, context, random_images, small_vit
from flax.traverse_util import flatten_dict
from scipy.special import log_softmax

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh

START, END, PAD = 11, 12, 0
TEXT = TextConfig(
    vocab_size=13, context_length=8, width=8, depth=1, num_heads=2, mlp_dim=12, weight_init="clip"
)
CLIP = CLIPConfig(image=small_vit(), text=TEXT, embed_dim=8)
WORDS, NAMES = (3, 5), ((7,), (2, 4), (9, 1))
OWN_WORDS = ((3, 5, 6), (5, 5, 2), (8, 3, 1))  # of each class


def rows(texts, length, start=(START,)):
    """Token ids of texts between their marks."""
    ids = [(*start, *text, END) for text in texts]
    return jnp.asarray([x + (PAD,) * (length - len(x)) for x in ids], jnp.int32)


def random_params(model, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), model.shapes()
    )


def prompted(architecture, params, words=WORDS, **changes):
    """The same model with the embeddings of `words`, (M,) or (C, M), as its prompt."""
    words = np.asarray(words)
    count, length = (words.shape[0] if words.ndim == 2 else 0), words.shape[-1]
    context_length = architecture.text.context_length - length + (count > 0)
    text = dataclasses.replace(
        architecture.text,
        context_length=context_length,
        prompt_length=length,
        prompt_classes=count,
        **changes,
    )
    params = {**params, "text": {**params["text"]}}
    params["text"]["prompt"] = params["text"]["token_embed"]["embedding"][words]
    return ModelDef(dataclasses.replace(architecture, text=text), scan=False), params


def coop(words, name, position):
    """Words and name in the order of `PromptLearner.forward` of CoOp's code."""
    half = len(words) // 2
    if position == "middle":
        return (*words[:half], *name, *words[half:])
    return (*words, *name) if position == "end" else (*name, *words)


@pytest.mark.parametrize(
    ("words", "position", "fields", "start"),
    [
        (WORDS, "end", {}, (START,)),
        (OWN_WORDS, "middle", {"pool": "last", "causal": False, "end_id": END}, ()),
        (OWN_WORDS, "front", {}, (START,)),
    ],
)
def test_a_prompt_of_words_gives_the_embeddings_of_these_words(words, position, fields, start):
    """Of all classes, or of each class, whose rows are in another order than the classes."""
    architecture = dataclasses.replace(
        CLIP, text=dataclasses.replace(TEXT, context_length=9, **fields)
    )
    model = ModelDef(architecture, scan=False)
    params = random_params(model)
    learned, with_prompt = prompted(
        architecture, params, words, prompt_after=len(start), class_position=position
    )
    own, order = np.ndim(words) == 2, (2, 0, 1)
    texts = [coop(words[k] if own else words, NAMES[k], position) for k in order]
    names = [(*((-1 - k,) if own else ()), *NAMES[k]) for k in order]
    length = learned.architecture.text.context_length

    @jax.jit
    def embed(params, with_prompt):
        tokens = rows([*names, NAMES[0]], length, start)  # the last one without a class
        expected = model.bind(params).encode_text(rows(texts, 9, start), normalize=True)
        return expected, learned.bind(with_prompt).encode_text(tokens, normalize=True)

    expected, found = embed(params, with_prompt)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-6, atol=1e-6)
    assert np.isnan(found[3]).all() == own


def test_the_prompt_is_a_parameter_of_the_text_tower():
    learned, params = prompted(CLIP, random_params(ModelDef(CLIP)))
    shapes = {path: x.shape for path, x in flatten_dict(learned.shapes(), sep="/").items()}
    assert shapes == {p: x.shape for p, x in flatten_dict(params, sep="/").items()}
    assert shapes["text/prompt"] == (2, 8)
    assert shapes["text/positions"] == (8, 8)
    assert learned.metadata("decay")["text"]["prompt"] is False
    own, params = prompted(CLIP, random_params(ModelDef(CLIP)), OWN_WORDS)
    shapes = own.shapes()["text"]
    assert (shapes["prompt"].shape, shapes["positions"].shape) == ((3, 3, 8), (8, 8))
    for message, fields in (
        ("prompt_after of 0 or 1; found 2 and 3", {"prompt_length": 2, "prompt_after": 3}),
        ("prompt_length above 0 with classes; found 3 and 0", {"prompt_classes": 3}),
        ("before the end of text: set end_id", {"class_position": "front", "pool": "last"}),
        ("did you mean 'middle'", {"class_position": "middel"}),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(TEXT, **fields)


class Stub:
    """Embeddings of the images' first pixel and of the texts' first token."""

    def __init__(self, texts):
        self.texts = texts

    def encode_image(self, images, *, normalize, rng):
        pixel = images[:, 0, 0]
        return pixel / jnp.linalg.norm(pixel, axis=1, keepdims=True)

    def encode_text(self, tokens, *, normalize):
        return self.texts[tokens[:, 0]]

    def logit_parameters(self):
        return jnp.float32(4), None


def names_context(**fields):
    """Context of a run on three classes, whose texts are tokenized as their numbers."""
    return context(
        CLIP,
        class_names=lambda: ["0", "1", "2"],
        tokenize=lambda texts: np.asarray([[int(x.split()[-1])] * 8 for x in texts], np.int32),
        **fields,
    )


def test_loss_in_float64():
    """Three classes on four devices: the fourth row is padding."""
    mesh = make_mesh(devices=jax.devices()[:4])
    objective = build(
        "prompt_learning",
        names_context(mesh=mesh, batch_axes=BATCH_AXES, microbatches=(1, 4)),
        template="a {}",
    )
    (constants,) = objective.load_constants()
    (abstract,) = objective.abstract_constants
    assert constants["tokens"].shape == abstract["tokens"].shape == (4, 8)
    assert abstract["tokens"].sharding == batch_sharding(mesh)
    packed, seen = random_images(6)
    label, weight = np.asarray([0, 2, 1, 1, 0, 2]), np.asarray([1, 1, 0, 1, 1, 0.0])
    texts = np.random.default_rng(1).normal(size=(3, 3))
    pixel = seen[:, 0, 0] / np.linalg.norm(seen[:, 0, 0], axis=1, keepdims=True)
    logits = 4 * pixel @ texts.T
    losses = -log_softmax(logits, axis=1)[np.arange(6), label]
    batch = {"image": packed, "label": jnp.asarray(label), "weight": jnp.asarray(weight)}
    model = Stub(jnp.asarray(texts, jnp.float32))
    loss, metrics = jax.jit(lambda *given: objective.evaluate(model, *given))(batch, constants)
    np.testing.assert_allclose(loss, (losses * weight).sum() / 4, rtol=1e-5)
    right = (logits.argmax(1) == label) * weight
    np.testing.assert_allclose(metrics["accuracy"], right.sum() / 4, rtol=1e-6)


def test_a_prompt_is_learned():
    """With all else frozen; images lie where the texts with `WORDS` are, relative to their mean."""
    learned, params = prompted(CLIP, random_params(ModelDef(CLIP), seed=1))
    objective = build("prompt_learning", names_context())
    tokens, adam = rows(NAMES, 6), optax.adam(0.1)
    batch = {"image": jnp.zeros((3, 8 * 12 * 3), jnp.uint8), "label": jnp.arange(3)}

    def tower(prompt):
        return learned.bind({**params, "text": {**params["text"], "prompt": prompt}})

    @jax.jit
    def train(words):
        texts = tower(words).encode_text(tokens, normalize=True)
        images = texts - texts.mean(0)
        images /= jnp.linalg.norm(images, axis=1, keepdims=True)

        def loss_of(prompt):
            model = types.SimpleNamespace(
                encode_image=lambda pixels, **options: images,
                encode_text=tower(prompt).encode_text,
                logit_parameters=lambda: (jnp.float32(10), None),
            )
            return objective.evaluate(model, batch, {"tokens": tokens})[0]

        def step(state, _):
            prompt, moments = state
            loss, gradient = jax.value_and_grad(loss_of)(prompt)
            updates, moments = adam.update(gradient, moments)
            return (prompt + updates, moments), loss

        start = jnp.zeros_like(words)
        return jax.lax.scan(step, (start, adam.init(start)), length=40)[1]

    losses = train(params["text"]["prompt"])
    assert losses[-1] < losses[0] / 2


def test_wrong_configs():
    with pytest.raises(UserError, match="needs a dual encoder, as clip_vit_b16; found ViTConfig"):
        build("prompt_learning", context(small_vit()))
    with pytest.raises(UserError, match="expected exactly one"):
        build("prompt_learning", context(CLIP), template="a photo")
    own = dataclasses.replace(TEXT, prompt_length=2, prompt_classes=10)
    for text, count in ((own, 10), (TEXT, 1000)):
        planned = build("prompt_learning", context(dataclasses.replace(CLIP, text=text)))
        assert planned.abstract_constants[0]["tokens"].shape == (count, 8)
    with pytest.raises(UserError, match="expected a source with labels"):
        planned.load_constants()
