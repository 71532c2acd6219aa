"""The loss of Grounding DINO against NumPy and SciPy in float64, with a stand-in for the model."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import SIZE, build, context, random_images, small_vit, step_on_devices
from flax import nnx
from set_reference import set_means, set_sums

from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.spec import ModelSpec

IMAGES, QUERIES, LENGTH, BOXES, LAYERS = 16, 5, 6, 6, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """Boxes and features of queries from a linear map of the pixels, for each layer."""

    image_size: tuple[int, int] = SIZE
    decoder_depth: int = LAYERS

    def make(self, **execution: Any) -> "Reader":
        return Reader(execution["rngs"])


class Reader(nnx.Module):
    def __init__(self, rngs):
        pixels, queries = SIZE[0] * SIZE[1] * 3, (LAYERS + 1) * QUERIES
        self.box = nnx.Linear(pixels + 2, queries * 4, rngs=rngs)
        self.visual = nnx.Linear(pixels, queries * 3, rngs=rngs)
        self.words = nnx.Embed(50, 3, rngs=rngs)

    def layers_above(self):
        return {}

    def embed_caption(self, tokens):
        return self.words(tokens)

    def predict(self, images, tokens, *, sizes, rng):
        flat = images.reshape(len(images), -1)
        boxes = self.box(jnp.concatenate([flat, sizes / 10], axis=1))
        boxes = jax.nn.sigmoid(boxes).reshape(len(images), -1, QUERIES, 4)
        visual = self.visual(flat).reshape(len(images), -1, QUERIES, 3)
        logits = jnp.einsum("blqd,btd->lbqt", visual, self.embed_caption(tokens)) * 3
        logits = jnp.where(tokens[:, None] > 0, logits, jnp.finfo(jnp.float32).min)
        boxes = jnp.moveaxis(boxes, 1, 0)
        return types.SimpleNamespace(
            selected_boxes=boxes[0], selected_logits=logits[0], boxes=boxes[1:], logits=logits[1:]
        )


def grounding(architecture=None, microbatches=(1, 1), resize="squash", **keys):
    ctx = context(architecture or ReaderConfig(), microbatches=microbatches)
    spec = ModelSpec(architecture=ctx.spec.architecture, inputs=ImageInputs(resize=resize))
    return build("grounding", dataclasses.replace(ctx, spec=spec), **keys)


def make_batch(seed=0):
    """From no box to more boxes than queries; phrases of one to three tokens."""
    rng = np.random.default_rng(seed)
    lengths = np.arange(IMAGES) % 4 + LENGTH - 3
    count = np.arange(IMAGES) * (BOXES + 1) // IMAGES
    first = rng.integers(0, lengths[:, None] - 2, (IMAGES, BOXES))
    token = np.arange(LENGTH) - first[..., None]
    phrase = (token >= 0) & (token < rng.integers(1, 4, (IMAGES, BOXES, 1)))
    words = np.arange(LENGTH) < lengths[:, None]
    return {
        "image": np.asarray(random_images(IMAGES, seed)[0]),
        "sizes": rng.integers(4, 9, (IMAGES, 2)).astype(np.int32),
        "tokens": (rng.integers(1, 50, (IMAGES, LENGTH)) * words).astype(np.int32),
        "boxes": rng.uniform(0.1, 0.6, (IMAGES, BOXES, 4)).astype(np.float32),
        "positive_map": phrase & words[:, None] & (np.arange(BOXES) < count[:, None])[..., None],
    }


@pytest.fixture(scope="module")
def params():
    return jax.jit(ModelDef(ReaderConfig()).init)(jax.random.key(0))


def on_devices(params, count, microbatches):
    """Loss, metrics and gradients on a mesh of some devices."""
    objective = grounding(microbatches=(microbatches, count))
    return step_on_devices(objective, params, make_batch(), count)


def test_losses_of_all_layers_on_any_devices(params):
    (loss, metrics), gradients = on_devices(params, 1, microbatches=1)

    @jax.jit
    def predict(params, batch):
        images = ImageInputs(size=SIZE, resize="squash").normalize(batch["image"])
        found = ModelDef(ReaderConfig()).bind(params).predict(
            images, batch["tokens"], sizes=batch["sizes"], rng=None
        )  # fmt: skip
        first = found.selected_boxes[None], found.selected_logits[None]
        return jnp.concatenate([first[0], found.boxes]), jnp.concatenate([first[1], found.logits])

    batch = make_batch()
    words = batch["tokens"] > 0
    expected = [
        set_means(
            set_sums(
                {"boxes": boxes, "logits": np.where(words[:, None], logits, 0)},
                batch["boxes"], batch["positive_map"], words, l1=5.0, giou=2.0,
            )
        )
        for boxes, logits in zip(*map(np.float64, predict(params, batch)), strict=True)
    ]  # fmt: skip
    weighted = [2 * x["class"] + 5 * x["l1"] + 2 * x["giou"] for x in expected]
    np.testing.assert_allclose(loss, sum(weighted), rtol=1e-5)
    np.testing.assert_allclose(metrics.pop("selection_loss"), weighted[0], rtol=1e-5)
    last = {k + "_loss" * (k in ("class", "l1", "giou")): v for k, v in expected[-1].items()}
    assert metrics.keys() == last.keys()
    assert 0 < last["unmatched"] < 0.2
    assert 0 < last["accuracy"] < 1
    for name, value in last.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    (other, _), more = on_devices(params, 8, microbatches=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (other, more),
        (loss, gradients),
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"class_cost": -1.0}, "class_cost=-1.0: expected a number of at least 0"),
        (
            {"objectness_weight": 1.0},
            "objectness_weight does not apply to the objective .grounding.: it is a key of owl",
        ),
        (
            {"architecture": small_vit()},
            "by a caption, as grounding_dino_tiny; found ViTConfig",
        ),
        ({"resize": "crop"}, "boxes need inputs that show the whole image"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        grounding(**keys)
