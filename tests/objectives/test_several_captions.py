"""Several captions per image, all positives, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import build, context, small_vit
from jax.sharding import NamedSharding, PartitionSpec
from reference import log_softmax

from vit_jax import experiment
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.objectives.contrastive import contrastive_loss
from vit_jax.objectives.contrastive.several_captions import several_captions_loss
from vit_jax.parallel.mesh import BATCH_AXES, make_mesh

IMAGES, COUNT, SCALE, BIAS = 8, 3, 6.0, -2.0


def vectors(noise=1.0):
    """Unit vectors of images (N, D) and of their captions (N, K, D)."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(IMAGES, 5))
    text = image[:, None] + noise * rng.normal(size=(IMAGES, COUNT, 5))
    return [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]


def expected(loss):
    """Loss, and its gradients by image and text."""
    image, text = vectors()
    rows = text.reshape(-1, 5)
    own = np.repeat(np.eye(IMAGES), COUNT, axis=1)
    logits, pairs = SCALE * image @ rows.T, IMAGES * COUNT
    if loss == "softmax":
        by_row, by_column = log_softmax(logits), log_softmax(logits.T).T
        value = -(own * by_row).sum() / pairs / 2 - (own * by_column).sum() / pairs / 2
        slope = (np.exp(by_row) - own / COUNT) / IMAGES / 2
        slope += (np.exp(by_column) - own) / pairs / 2
    else:
        sign = 2 * own - 1
        value = np.logaddexp(0, -sign * (logits + BIAS)).sum() / pairs
        slope = -sign / (1 + np.exp(sign * (logits + BIAS))) / pairs
    return value, SCALE * slope @ rows, (SCALE * slope.T @ image).reshape(text.shape)


def found(loss, form, devices):
    """The same in float32 on some devices, and the metrics."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    arrays = [jnp.asarray(x, jnp.float32) for x in vectors()]
    arrays = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))

    def value(image, text):
        return several_captions_loss(
            image, text, logit_scale=jnp.float32(SCALE), logit_bias=jnp.float32(BIAS),
            loss=loss, form=form, mesh=mesh, batch_axes=BATCH_AXES, tile_size=3,
        )  # fmt: skip

    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))
    (loss, metrics), gradients = step(*arrays)
    return (loss, *gradients), metrics


@pytest.mark.parametrize(
    ("loss", "form", "devices"),
    [("softmax", "gathered", 1), ("softmax", "gathered", 4), ("sigmoid", "tiled", 2)],
)  # fmt: skip
def test_equals_reference(loss, form, devices):
    results, metrics = found(loss, form, devices)
    for ours, wanted in zip(results, expected(loss), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    if loss == "softmax":
        image, text = vectors()
        cosines = np.einsum("id,jkd->ijk", image, text)
        best = cosines.reshape(IMAGES, -1).argmax(1) // COUNT == np.arange(IMAGES)
        right = cosines.argmax(0) == np.arange(IMAGES)[:, None]
        assert 0 < right.mean() < 1
        np.testing.assert_allclose(metrics["image_to_text_accuracy"], best.mean(), rtol=1e-6)
        np.testing.assert_allclose(metrics["text_to_image_accuracy"], right.mean(), rtol=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_equal_captions_are_one(loss):
    image, text = (jnp.asarray(x, jnp.float32) for x in vectors())
    options = {"logit_scale": jnp.float32(SCALE), "logit_bias": jnp.float32(BIAS), "loss": loss}
    options |= {"form": "gathered", "mesh": None, "batch_axes": ()}

    @jax.jit
    def both(image, text):
        one, _ = contrastive_loss(image, text[:, 0], **options)
        return one, several_captions_loss(image, text[:, [0] * COUNT], **options)[0]

    one, several = both(image, text)
    extra = np.log(COUNT) / 2 if loss == "softmax" else 0
    np.testing.assert_allclose(several, one + extra, rtol=1e-5)


CLIP = CLIPConfig(
    image=small_vit(), text=TextConfig(width=8, depth=1, num_heads=2), embed_dim=8,
    init_logit_bias=-10.0,
)  # fmt: skip


def test_the_objective_reads_captions():
    several = context(CLIP, captions_per_image=3)
    assert build("contrastive", several).fields == ("image", "captions")
    assert build("contrastive", context(CLIP)).fields == ("image", "tokens")
    build("contrastive", several, loss="sigmoid", form="ring")
    with pytest.raises(UserError, match="form='tiled': the softmax loss of several captions"):
        build("contrastive", several, form="tiled")


def test_the_whole_objective():
    """Captions are embedded as texts of their own and go back to their images."""
    image, text = (jnp.asarray(x, jnp.float32) for x in vectors())

    class Stub:
        def encode_image(self, images, *, normalize, rng):
            return image

        def encode_text(self, tokens, *, normalize, rng):
            return text.reshape(-1, 5)[tokens[:, 0]]

        def logit_parameters(self):
            return jnp.float32(SCALE), None

    objective = build("contrastive", context(CLIP, captions_per_image=COUNT))
    tokens = np.arange(IMAGES * COUNT).reshape(IMAGES, COUNT, 1)
    batch = {"image": jnp.zeros((IMAGES, 8 * 12 * 3), jnp.uint8), "captions": jnp.asarray(tokens)}
    loss, _ = jax.jit(lambda batch: objective.evaluate(Stub(), batch))(batch)
    np.testing.assert_allclose(loss, expected("softmax")[0], rtol=1e-5)


def test_the_run_knows_the_shape_of_captions():
    config = default_config(model="clip_vit_emoji")
    config.update(batch_size=16, total_steps=2)
    config.data.captions_per_image = 3
    run = experiment.build(config, data=False, devices=jax.devices()[:1])
    assert run.abstract_batch["captions"].shape == (16, 3, 16)
