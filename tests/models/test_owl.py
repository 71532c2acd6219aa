"""OWL-ViT and OWLv2: towers without a class token, padding, gradients, one-shot rules, errors.

The activations of transformers are compared in tests/weights/test_transformers.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.owl.heads import box_bias
from vit_jax.models.owl.model import OwlConfig
from vit_jax.models.owl.one_shot import query_by_overlap
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.vit.model import ViTConfig

STACK = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24}
CONFIG = OwlConfig(
    image=ViTConfig(**STACK, image_size=16, patch_size=4, class_token=False, pool="mean"),
    text=TextConfig(**STACK, vocab_size=50, context_length=6),
    embed_dim=12,
    objectness=True,
)
TOKENS = jnp.array([[[7, 49, 0, 0, 0, 0], [9, 8, 7, 49, 0, 0], [0] * 6]], jnp.int32)


@pytest.fixture(scope="module")
def detector():
    """A detector without a class token, and random parameters."""
    model = ModelDef(CONFIG)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.3, 0.3, x.shape), "f4"), model.shapes()
    )
    return model, params


def images(height=16, width=16):
    return jnp.asarray(np.random.default_rng(1).normal(size=(1, height, width, 3)), jnp.float32)


def layer_norm(x, params, epsilon=1e-6):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * params["scale"] + params["bias"]


def test_pooled_features_take_the_place_of_the_class_token(detector):
    """Against NumPy in float64, from the output of the last block."""
    model, params = detector
    module = model.bind(params)
    [block], features = jax.jit(
        lambda x: (module.features(x, layers=(-1,)), module.patch_features(x))
    )(images())
    patches = layer_norm(np.asarray(block, np.float64), params["image"]["norm"])
    merged = patches * patches.mean(axis=1, keepdims=True)
    expected = layer_norm(merged, params["merged_norm"])
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_every_patch_of_any_image_predicts_a_box(detector):
    model, params = detector
    found = jax.eval_shape(model.bind(params), images(8, 20), TOKENS)
    assert {name: x.shape for name, x in found.items()} == {
        "boxes": (1, 10, 4), "logits": (1, 10, 3), "objectness": (1, 10)
    }  # fmt: skip
    assert {x.dtype for x in found.values()} == {jnp.dtype("float32")}


def test_fresh_boxes_lie_on_the_grid():
    """Their centre is the lower right corner of the patch, in float64 up to the margin of 1e-4."""
    boxes = 1 / (1 + np.exp(-box_bias((2, 5)).astype(np.float64)))
    expected = [(x / 5, y / 2, 1 / 5, 1 / 2) for y in (1, 2) for x in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(boxes, expected, atol=2e-4)


@pytest.mark.parametrize(("scale", "prior"), [(10.0, 0.01), (0.5, 0.3)])
def test_fresh_heads_predict_the_prior(scale, prior):
    config = dataclasses.replace(CONFIG, prior=prior, init_class_scale=scale)
    module = ModelDef(config).bind(ModelDef(config).init(jax.random.key(0)))
    features, queries = jax.random.normal(jax.random.key(1), (2, 1, 3, 16))
    queries = queries[..., :12]
    embedded = np.asarray(module.class_head.embed(features), np.float64)[0]
    cosines = np.einsum("qe,ce->qc", embedded, np.asarray(queries, np.float64)[0])
    cosines /= np.linalg.norm(embedded, axis=1)[:, None] + 1e-6
    cosines /= np.linalg.norm(queries[0], axis=1) + 1e-6
    logit = np.log(prior / (1 - prior))
    found = module.class_head(features, queries, None)[0]
    np.testing.assert_allclose(found, scale * cosines + logit, rtol=1e-5)
    np.testing.assert_allclose(module.predict_objectness(features), logit, rtol=1e-6)


def test_padding_is_masked_and_gradients_are_finite(detector):
    """A query of zeros is finite, and objectness does not train the features."""
    model, params = detector
    rng = np.random.default_rng(2)
    queries = jnp.asarray(rng.normal(size=(1, 3, 12)), "f4").at[0, 2].set(0)
    features = jnp.asarray(rng.normal(size=(1, 4, 16)), "f4")

    def losses(features, queries):
        module = model.bind(params)
        logits = module.class_head(features, queries, jnp.any(queries, axis=-1))
        kept = jnp.where(logits > -1e30, logits, 0)
        return (jnp.sum(jnp.sin(kept)), jnp.sum(module.predict_objectness(features))), logits

    (by_class, by_objectness), logits = jax.jit(jax.jacrev(losses, (0, 1), has_aux=True))(
        features, queries
    )
    assert (logits[..., 2] == np.finfo(np.float32).min).all()
    assert (logits[..., :2] > -1e3).all()
    assert all(np.isfinite(x).all() for x in by_class)
    assert np.all(by_class[0])
    assert not np.any(by_objectness[0])


def test_a_query_of_boxes_beside_the_image():
    """Without any overlap the generalized IoU decides; the best box is always a candidate."""
    boxes = jnp.asarray([[[3.0, 3.0, 0.1, 0.1], [1.2, 0.5, 0.1, 0.1], [4.0, 4.0, 0.1, 0.1]]])
    assert jax.jit(query_by_overlap)(boxes, jnp.ones((1, 3, 2))) == 1


def test_errors():
    with pytest.raises(UserError, match=r"expected image.patch_dropout=0; found 0.5"):
        dataclasses.replace(CONFIG, image=dataclasses.replace(CONFIG.image, patch_dropout=0.5))
    with pytest.raises(UserError, match=r"prior=1.0, init_class_scale=1.0: expected a prob"):
        dataclasses.replace(CONFIG, prior=1.0)
    with pytest.raises(UserError, match="image tower of a detector is a ViT; found SwinConfig"):
        dataclasses.replace(CONFIG, image=SwinConfig())
