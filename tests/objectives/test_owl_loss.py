"""OWL's loss against NumPy and SciPy in float64, with a small stand-in for a detector."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import SIZE, build, context, random_images, small_vit, step_on_devices
from flax import nnx
from scipy.special import expit
from set_reference import set_means, set_sums

from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.spec import ModelSpec
from vit_jax.objectives.focal import sigmoid_focal_loss
from vit_jax.objectives.owl import Owl
from vit_jax.objectives.set_prediction import set_losses

IMAGES, QUERIES, PROMPTS, BOXES = 16, 7, 4, 9
LOSSES = ("class", "l1", "giou", "objectness")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyDetectorConfig:
    """Boxes from a linear map of the pixels, logits from their product with embedded tokens."""

    image_size: tuple[int, int] = SIZE
    queries: int = QUERIES
    objectness: bool = True

    def make(self, **execution: Any) -> "TinyDetector":
        return TinyDetector(self, execution["rngs"])


class TinyDetector(nnx.Module):
    def __init__(self, config, rngs):
        self.config = config
        pixels, queries = SIZE[0] * SIZE[1] * 3, config.queries
        self.box = nnx.Linear(pixels, queries * 4, rngs=rngs)
        self.visual = nnx.Linear(pixels, queries * 6, rngs=rngs)
        self.words = nnx.Embed(50, 6, rngs=rngs)

    def layers_above(self):
        return {}

    def detect(self, images, embedded):
        flat = images.reshape(len(images), -1)
        visual = self.visual(flat).reshape(len(images), -1, 6)
        outputs = {
            "boxes": jax.nn.sigmoid(self.box(flat)).reshape(len(images), -1, 4),
            "logits": jnp.einsum("bqd,bcd->bqc", visual, embedded),
        }
        if self.config.objectness:
            outputs["objectness"] = jax.lax.stop_gradient(visual)[..., 0]
        return outputs

    def __call__(self, images, tokens, *, rng=None):
        return self.detect(images, jnp.sum(self.words(tokens), axis=2))


def owl(architecture=None, microbatches=(1, 1), inputs=None, **keys):
    ctx = context(architecture or TinyDetectorConfig(), microbatches=microbatches)
    spec = ModelSpec(
        architecture=ctx.spec.architecture, inputs=inputs or ImageInputs(resize="squash")
    )
    return build("owl", dataclasses.replace(ctx, spec=spec), **keys)


def make_batch(seed=0):
    """From no box to more boxes than queries, and from 1 to PROMPTS prompts."""
    rng = np.random.default_rng(seed)
    prompts = np.arange(IMAGES) % PROMPTS + 1
    valid = np.arange(BOXES) < (np.arange(IMAGES) * BOXES // (IMAGES - 1))[:, None]
    tokens = rng.integers(1, 50, (IMAGES, PROMPTS, 5))
    return {
        "image": np.asarray(random_images(IMAGES, seed)[0]),
        "tokens": (tokens * (np.arange(PROMPTS) < prompts[:, None])[..., None]).astype(np.int32),
        "boxes": rng.uniform(0.1, 0.6, (IMAGES, BOXES, 4)).astype(np.float32) * valid[..., None],
        "labels": np.where(valid, rng.integers(0, prompts[:, None], valid.shape), -1).astype("i4"),
    }


def random_outputs(seed=1):
    rng = np.random.default_rng(seed)
    return {
        "boxes": rng.uniform(0.1, 0.6, (IMAGES, QUERIES, 4)),
        "logits": rng.normal(size=(IMAGES, QUERIES, PROMPTS)) * 2,
        "objectness": rng.normal(size=(IMAGES, QUERIES)),
    }


def reference(outputs, batch, l1_weight=1.0):
    """Losses and metrics, float64."""
    targets = np.eye(PROMPTS, dtype=bool)[batch["labels"]] & (batch["labels"] >= 0)[..., None]
    prompts = batch["tokens"][:, :, 0] != 0
    weights = {"alpha": 0.3, "l1": l1_weight}
    return set_means(set_sums(outputs, batch["boxes"], targets, prompts, **weights))


@jax.jit
def losses_and_gradients(outputs, batch):
    def total(outputs):
        prompts = batch["tokens"][:, :, 0] != 0
        of_box = jax.nn.one_hot(batch["labels"], PROMPTS, dtype=bool)
        sums = set_losses(outputs, batch["boxes"], of_box, prompts, Owl.Config())
        losses, metrics = sums.means()
        return sum(losses.values()), {**losses, **metrics}

    return jax.grad(total, has_aux=True)(outputs)


def test_losses_and_gradients():
    batch, outputs = make_batch(), random_outputs()
    gradients, found = losses_and_gradients(jax.tree.map(np.float32, outputs), batch)
    expected = reference(outputs, batch)
    assert found.keys() == expected.keys()
    assert 0 < expected["unmatched"] < 0.2
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)

    step = {k: v * 1e-6 for k, v in random_outputs(2).items()}

    def value(sign):
        moved = reference({k: v + sign * step[k] for k, v in outputs.items()}, batch)
        return sum(moved[name] for name in LOSSES)

    along = sum(np.sum(gradients[k] * step[k]) for k in outputs)
    np.testing.assert_allclose(along, (value(1) - value(-1)) / 2, rtol=1e-4)


def test_extreme_scenes_are_finite():
    """No box in the batch, boxes without area, boxes in one point, and infinite logits."""
    batch, outputs = make_batch(), jax.tree.map(np.float32, random_outputs())
    nothing = {**batch, "labels": np.full_like(batch["labels"], -1)}
    gradients, found = losses_and_gradients(outputs, nothing)
    assert found["l1"] == found["giou"] == found["boxes_per_image"] == found["unmatched"] == 0
    assert found["class"] > 0
    batch["boxes"][..., 2:] = 0
    outputs["boxes"][:] = batch["boxes"][:, :1]
    outputs["logits"][:2] = 1e30
    # Padding, as a detector masks it.
    outputs["logits"] = np.where(batch["tokens"][:, None, :, 0] == 0, -np.inf, outputs["logits"])
    more_gradients, more = losses_and_gradients(outputs, batch)
    for x in jax.tree.leaves((gradients, found, more_gradients, more)):
        assert np.isfinite(x).all()


def test_focal_loss_without_focus_is_cross_entropy():
    logits, targets = jnp.float32([-90, -1, 0.5, 200]), jnp.asarray([True, False, True, False])

    @jax.jit
    def loss(logits):
        return jnp.sum(sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=0.0))

    value, gradient = jax.value_and_grad(loss)(logits)
    expected = 90 + np.log1p(np.exp(-1)) + np.log1p(np.exp(-0.5)) + 200
    np.testing.assert_allclose(value, expected / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, (expit(logits) - targets) / 2, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def params():
    return jax.jit(ModelDef(TinyDetectorConfig()).init)(jax.random.key(0))


def on_devices(params, count, microbatches):
    """Loss, metrics and gradients on a mesh of some devices."""
    objective = owl(microbatches=(microbatches, count), l1_weight=5.0)
    return step_on_devices(objective, params, make_batch(), count)


def test_equal_on_any_devices_and_microbatches(params):
    (loss, metrics), gradients = on_devices(params, 1, microbatches=1)

    @jax.jit
    def predict(params, batch):
        images = ImageInputs(size=SIZE, resize="squash").normalize(batch["image"])
        return ModelDef(TinyDetectorConfig()).bind(params)(images, batch["tokens"])

    outputs = predict(params, make_batch())
    expected = reference(jax.tree.map(np.float64, outputs), make_batch(), l1_weight=5.0)
    weighted = sum(expected[k] * (5 if k == "l1" else 1) for k in LOSSES)
    np.testing.assert_allclose(loss, weighted, rtol=1e-5)
    assert metrics.keys() == {*expected} - {*LOSSES} | {f"{name}_loss" for name in LOSSES}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        on_devices(params, 8, microbatches=2),
        ((loss, metrics), gradients),
    )


def test_a_model_without_objectness():
    objective = owl(TinyDetectorConfig(objectness=False))
    batch = jax.tree.map(jnp.asarray, make_batch())
    shapes = objective.context.model.shapes()
    _, metrics = jax.eval_shape(
        lambda p: objective.evaluate(objective.context.model.bind(p), batch), shapes
    )
    assert "objectness_loss" not in metrics
    assert "giou_loss" in metrics


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"focal_alpha": 1.5}, r"focal_alpha=1.5: expected a number of at least 0 and at most 1"),
        ({"l1_weight": -1.0}, "l1_weight=-1.0: expected a number of at least 0"),
        ({"giou_wieght": 1.0}, "did you mean 'config.objective.giou_weight'"),
        (
            {"architecture": small_vit()},
            "a detector, as owlvit_base_patch32; found ViTConfig",
        ),
        ({"inputs": ImageInputs(resize="crop")}, "boxes need inputs that show the whole image"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        owl(**keys)
