"""Grounding DINO: phrases, padding, gradients, errors.

The activations of transformers are compared in tests/weights/test_transformers.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models.bert.model import BertConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.grounding_dino.captions import SEPARATORS, phrase_layout
from vit_jax.models.grounding_dino.levels import level_geometry
from vit_jax.models.grounding_dino.model import GroundingDinoConfig
from vit_jax.models.swin.model import SwinConfig

CONFIG = GroundingDinoConfig(
    image=SwinConfig(
        image_size=32,
        width=4,
        depths=(1, 1),
        num_heads=(1, 1),
        window_size=2,
        fixed_windows=True,
        final_norm=False,
    ),
    text=BertConfig(vocab_size=1030, context_length=8, width=8, depth=1, num_heads=1, mlp_dim=8),
    width=32,
    num_levels=2,
    num_queries=3,
    encoder_depth=1,
    decoder_depth=1,
    num_heads=2,
    encoder_mlp_dim=8,
    decoder_mlp_dim=8,
)
CAPTION = (101, 7, 8, 1012, 9, 1012, 102)
TOKENS = np.array([(*CAPTION, 0)], np.int32)


def images(height=26, width=30):
    return np.random.default_rng(1).normal(size=(1, height, width, 3)).astype(np.float32)


def shapes_of(config, images, tokens):
    """Shapes of the results, without computing anything."""
    model = ModelDef(config)
    apply = lambda params, *inputs: model.bind(params)(*inputs)  # noqa: E731
    return jax.eval_shape(apply, model.shapes(), images, tokens)


def layout_of(row):
    """Phrases of a caption, token by token."""
    mask, positions = np.eye(len(row), dtype=bool), np.zeros(len(row), int)
    start = 0
    for i, token in enumerate(row):
        if token in SEPARATORS:
            if i not in (0, len(row) - 1):
                mask[start : i + 1, start : i + 1] = True
                positions[start : i + 1] = np.arange(i + 1 - start)
            start = i + 1
    return mask, positions


def test_tokens_attend_within_their_phrase():
    rows = [
        (101, 7, 8, 1012, 9, 1012, 102, 0),
        (101, 7, 1012, 8, 1012, 102, 0, 0),
        (101, 7, 8, 9, 1012, 10, 11, 102),  # without a final "."
        (101, 7, 8, 1012, 9, 10, 102, 0),
        (7, 1012, 1029, 1012, 8, 9, 10, 11),
        (7, 8, 9, 10, 11, 12, 13, 14),
    ]
    masks, positions = jax.jit(phrase_layout)(jnp.asarray(rows, jnp.int32))
    for row, *found in zip(rows, masks, positions, strict=True):
        expected = layout_of(row)
        for array, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, other)


def test_positions_of_the_padding():
    """A position belongs to the image if the pixel in its upper left corner does."""

    @jax.jit
    def geometry(sizes):
        levels = level_geometry([(4, 5), (2, 3)], sizes, (14, 18))
        return levels.split(levels.mask), levels.ratios, levels.centers()

    (first, second), ratios, centers = geometry(jnp.asarray([(14, 18), (9, 3)]))
    assert first[0].all()
    assert second[0].all()
    expected = np.outer([True, True, True, False], [True, False, False, False, False])
    np.testing.assert_array_equal(first[1], expected)
    np.testing.assert_array_equal(second[1], [[True, False, False], [True, False, False]])
    np.testing.assert_allclose(ratios[1], [(1 / 5, 3 / 4), (1 / 3, 1)])
    np.testing.assert_allclose(
        centers[1, 0:15:5], [(0.5, y / 3) for y in (0.5, 1.5, 2.5)], rtol=1e-6
    )


def test_images_of_any_size():
    found = shapes_of(CONFIG, images(27, 45), TOKENS)
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        "boxes": ((1, 3, 4), jnp.dtype("float32")),
        "logits": ((1, 3, 8), jnp.dtype("float32")),
    }


@pytest.mark.release
def test_padding_of_the_caption_and_gradients():
    """Zeros after a caption change nothing, and every parameter that is used has a gradient."""
    model = ModelDef(CONFIG)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), "f4"), model.shapes())

    def loss(params, tokens):
        found = model.bind(params)(jnp.asarray(images()), tokens)
        logits = jnp.where(tokens[:, None] > 0, found["logits"], 0)
        return jnp.sum(jnp.sin(found["boxes"])) + jnp.sum(jnp.sin(logits)), found

    (_, padded), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, TOKENS)
    _, bare = jax.jit(loss)(params, TOKENS[:, :-1])
    np.testing.assert_allclose(padded["boxes"], bare["boxes"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(padded["logits"][..., :-1], bare["logits"], rtol=1e-3, atol=1e-4)
    assert (padded["logits"][..., -1] == np.finfo(np.float32).min).all()
    # Queries start at boxes without gradients: only losses of the proposals reach their head.
    gradients.pop("selection")
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient) or "key" in str(path), path  # biases of keys cancel out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 48}, r"width=48: expected a multiple of 32 and of num_heads=2"),
        ({"num_heads": 1}, r"num_heads=1: expected an even number"),
        ({"image": dataclasses.replace(CONFIG.image, depths=(1,) * 4, num_heads=(1,) * 4)},
         r"num_levels=2: expected at least 3, one for each stage"),
    ],
)  # fmt: skip
def test_configs_that_contradict_themselves(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_errors():
    with pytest.raises(UserError, match=r"num_queries=50: expected at most .* which is 20 for"):
        shapes_of(dataclasses.replace(CONFIG, num_queries=50), images(), TOKENS)
    with pytest.raises(UserError, match=r"found 9 tokens .* at most text.context_length=8"):
        shapes_of(CONFIG, images(), np.zeros((1, 9), np.int32))
    with pytest.raises(UserError, match=r"context_length=600: expected at most num_positions=512"):
        BertConfig(context_length=600)
