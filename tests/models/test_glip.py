"""GLIP against torchvision's and transformers' parts, its checkpoints, boxes and gradients.

The reference is that of tests/fixtures/generators/make_glip.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import format_of, relative_error, split_reference
from vit_jax.errors import UserError
from vit_jax.models.bert.model import BertConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.glip.anchors import decode_boxes, make_anchors, relative_boxes
from vit_jax.models.glip.model import GlipConfig
from vit_jax.models.swin.model import SwinConfig
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights

CONFIG = GlipConfig(
    image=SwinConfig(
        image_size=64,
        patch_size=2,
        width=4,
        depths=(1, 2, 1, 1),
        num_heads=(1, 2, 2, 2),
        window_size=3,
        mlp_ratio=2.0,
        fixed_windows=True,
        final_norm=False,
        position_resize="bicubic",
    ),
    text=BertConfig(
        vocab_size=40,
        context_length=10,
        num_positions=12,
        width=16,
        depth=2,
        num_heads=2,
        mlp_dim=24,
    ),
    width=32,
    depth=2,
    fusion_heads=2,
    fusion_width=24,
    divisor=8,
)
MODEL = ModelDef(CONFIG)
NAMES = ("text", "image_layers", "text_layers", "logits", "deltas", "centerness")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return split_reference("glip_tiny.safetensors", tmp_path_factory.mktemp("glip"))


@pytest.fixture(scope="module")
def params(weights):
    return load_weights(weights[0], MODEL)


@pytest.fixture(scope="module")
def found(params, weights):
    """All results, and those of the call, by one program."""
    expected = weights[1]

    @jax.jit
    def run(params, images, tokens):
        predictions = MODEL.bind(params).predict(images, tokens)
        return predictions, predictions.detections(tokens, jnp.asarray([(19, 66), (17, 30)]))

    return run(params, expected["images"].astype(jnp.float32), expected["tokens"])


def test_same_activations(found, weights):
    predictions, expected = found[0], weights[1]
    arrays = {name: getattr(predictions, name) for name in NAMES}
    arrays |= {f"level_{i}": level for i, level in enumerate(predictions.levels)}
    errors = {k: relative_error(np.asarray(x), expected[k]) for k, x in arrays.items()}
    assert len(errors) == len(expected) - 2  # without images and tokens
    assert max(errors.values()) < 1e-5, errors


def test_detections(found, weights):
    """Boxes lie in their images; padding has the lowest logit."""
    predictions, result = found
    sizes = np.asarray([(19, 66), (17, 30)])
    corners = decode_boxes(predictions.deltas, predictions.anchors)
    np.testing.assert_allclose(result["boxes"], relative_boxes(corners, jnp.asarray(sizes)))
    np.testing.assert_array_equal(result["centerness"], predictions.centerness)
    exists = np.asarray(weights[1]["tokens"]) > 0
    assert (np.asarray(result["logits"])[0, :, ~exists[0]] == np.finfo(np.float32).min).all()
    np.testing.assert_array_equal(result["logits"][1], predictions.logits[1])
    low, high = (result["boxes"][..., :2] + sign * result["boxes"][..., 2:] / 2 for sign in (-1, 1))
    assert (low > -1e-6).all()
    assert (high < 1 + 1e-6).all()


def test_boxes():
    """Anchors of maskrcnn-benchmark, its deltas, and boxes clipped to the last pixel."""
    anchors = make_anchors(((1, 2), (1, 1)), (8, 16))
    expected = [(-28, -28, 35, 35), (-20, -28, 43, 35), (-56, -56, 71, 71)]
    np.testing.assert_array_equal(anchors, expected)
    deltas = np.float32([[(0, 0, 0, 0), (5, -10, 5 * np.log(2), -5 * np.log(2)), (0, 0, 99, 0)]])
    anchors, deltas = jnp.asarray(anchors), jnp.asarray(deltas)
    boxes = decode_boxes(deltas, anchors)
    # Moved by half a side to the right and by one up; twice as wide, half as high; 62.5 sides.
    center, side = (11.5 + 32, 3.5 - 64), (128, 32)
    second = [c + sign * (s - 1) / 2 for sign in (-1, 1) for c, s in zip(center, side, strict=True)]
    reach = (62.5 * 128 - 1) / 2
    expected = [expected[0], second, (7.5 - reach, -56, 7.5 + reach, 71)]
    np.testing.assert_allclose(boxes[0], expected, rtol=1e-5, atol=1e-4)
    found = relative_boxes(boxes, jnp.asarray([(40, 50)]))
    corners = np.float32([(0, 0, 35, 35), (0, 0, 49, 0), (0, 0, 49, 39)]) / (50, 40, 50, 40)
    expected = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:]], axis=-1)
    expected[1] = [(0 + 49) / 2 / 50, 0, 49 / 50, 0]
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_checkpoints_of_the_authors(params, weights, tmp_path):
    """The channels of images are reversed, and unused tensors are not written."""
    path, _ = weights
    assert format_of(path) == "glip"
    before = open_weights(path)
    kernel = before.read("backbone.body.patch_embed.proj.weight")
    np.testing.assert_array_equal(
        params["image"]["patch_embed"]["kernel"], kernel[:, ::-1].transpose(2, 3, 1, 0)
    )
    save_weights(params, MODEL, tmp_path / "out.safetensors", "glip")
    after = open_weights(tmp_path / "out.safetensors")
    assert format_of(after) == "glip"
    assert set(after) == {key for key in before if "cls_logits" not in key}
    for key in after:
        np.testing.assert_array_equal(after.read(key), before.read(key), strict=True)


@pytest.mark.release
def test_padding_of_the_caption_and_gradients(params, weights):
    """Zeros after a caption change nothing, and every parameter has a gradient."""
    images, tokens = (weights[1][name][:1] for name in ("images", "tokens"))
    images = images.astype(jnp.float32)

    def loss(params, tokens):
        found = MODEL.bind(params)(images, tokens)
        found["logits"] = jnp.where(tokens[:, None] > 0, found["logits"], 0)
        return sum(jnp.sum(jnp.sin(3 * x)) for x in found.values()), found

    (_, padded), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, tokens)
    _, bare = jax.jit(loss)(params, tokens[:, :-2])
    for name in ("boxes", "centerness"):
        np.testing.assert_allclose(padded[name], bare[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(padded["logits"][..., :-2], bare["logits"], rtol=1e-4, atol=1e-4)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient) or "key" in str(path), path  # biases of keys cancel out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 24}, "width=24: expected a multiple of 16"),
        ({"fusion_heads": 5}, "fusion_heads=5 does not divide fusion_width=24"),
        ({"image": dataclasses.replace(CONFIG.image, depths=(1,), num_heads=(1,))},
         "expected at least two stages"),
    ],
)  # fmt: skip
def test_configs_that_contradict_themselves(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_a_caption_that_is_too_long():
    module = MODEL.bind(MODEL.shapes())
    with pytest.raises(UserError, match=r"found 11 tokens .* at most text.context_length=10"):
        module.embed_caption(jnp.zeros((1, 11), jnp.int32))
