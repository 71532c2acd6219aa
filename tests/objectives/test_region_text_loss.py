"""RegionCLIP's pre-training against NumPy in float64, with small stand-ins for the models.

The reference compares each region with the concept of every region, as the authors' code does.
"""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import SIZE, build, context, random_images, small_vit
from flax import nnx
from scipy.special import log_softmax, softmax

from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.spec import ModelSpec
from vit_jax.objectives.region_text import region_losses
from vit_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh, to_devices
from vit_jax.parallel.sharding import tracing_for

IMAGES, BOXES, CONCEPTS, WIDTH, TEMPERATURE = 16, 5, 7, 6, 0.2
TERMS = ("contrastive", "distillation", "image_text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyRegionsConfig:
    """Embeddings of regions from the box and the mean color, of texts from their tokens."""

    image_size: tuple[int, int] = SIZE
    embed_dim: int = WIDTH
    text: str = "tokens"

    def make(self, **execution: Any) -> "TinyRegions":
        return TinyRegions(self, execution["rngs"])


class TinyRegions(nnx.Module):
    def __init__(self, config, rngs):
        self.visual = nnx.Linear(7, config.embed_dim, rngs=rngs)
        self.words = nnx.Embed(50, config.embed_dim, rngs=rngs)

    def layers_above(self):
        return {}

    def encode_regions(self, images, boxes, *, normalize=False, rng=None):
        color = jnp.broadcast_to(jnp.mean(images, axis=(1, 2))[:, None], (*boxes.shape[:2], 3))
        return unit(self.visual(jnp.concatenate([color, boxes], axis=-1)))

    def encode_text(self, tokens, *, normalize=False, rng=None):
        return unit(jnp.sum(self.words(tokens), axis=1))


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


INPUTS = ImageInputs(resize="squash")
SPEC = ModelSpec(architecture=TinyRegionsConfig(), inputs=INPUTS)
MODEL = ModelDef(TinyRegionsConfig())


def tokenize(texts):
    return np.array([[len(text), 1 + ord(text[-1]) % 40, 9] for text in texts], np.int32)


@pytest.fixture(scope="module")
def models():
    """Parameters of the model and of the teacher."""
    init = jax.jit(MODEL.init)
    return init(jax.random.key(0)), init(jax.random.key(1))


@pytest.fixture(scope="module")
def concepts(tmp_path_factory):
    path = tmp_path_factory.mktemp("concepts") / "concepts.txt"
    path.write_text("a\nbb\n\nccc\nbb\ndddd\nee\nf\nggg\n")
    return str(path)


def region_text(teacher, concepts, *, spec=SPEC, mesh=None, microbatches=(1, 1), **keys):
    inputs = ImageInputs(size=SIZE, resize="squash", mean=(0.2,) * 3, std=(0.9,) * 3)
    found = SimpleNamespace(spec=dataclasses.replace(SPEC, inputs=inputs), model=MODEL,
                            abstract=MODEL.shapes(), load=lambda: teacher)  # fmt: skip
    axes = {"mesh": mesh, "batch_axes": BATCH_AXES} if mesh else {}
    ctx = context(spec.architecture, microbatches=microbatches, open_model=lambda *_: found,
                  tokenize=tokenize, **axes)  # fmt: skip
    keys = {"teacher_model": "tiny", "temperature": TEMPERATURE, "concept_threshold": 0.3,
            "templates": ("{}", "x {}"), "concepts": concepts} | keys  # fmt: skip
    return build("region_text", dataclasses.replace(ctx, spec=spec), **keys)


def make_batch():
    """From no box to five boxes per image."""
    rng = np.random.default_rng(0)
    valid = np.arange(BOXES) < (np.arange(IMAGES) % (BOXES + 1))[:, None]
    return {
        "image": np.asarray(random_images(IMAGES)[0]),
        "boxes": rng.uniform(0.1, 0.6, (IMAGES, BOXES, 4)).astype(np.float32) * valid[..., None],
        "caption": rng.integers(1, 50, (IMAGES, 3)).astype(np.int32),
    }


def reference(own, taught, valid, threshold):
    """Losses and metrics from logits of regions and concepts, float64."""
    own, taught = log_softmax(own[valid], axis=-1), softmax(taught[valid], axis=-1)
    kept = taught.max(-1) > threshold
    kept = kept if kept.any() else np.ones_like(kept)
    own, taught, label = own[kept], taught[kept], taught[kept].argmax(-1)
    pairs = softmax(own[:, label], axis=1)  # a region and the concept of each region
    positive = np.sum(pairs * (label[:, None] == label), axis=1)
    return {
        "contrastive": -np.log(positive).mean(),
        "distillation": (taught * (np.log(taught) - own)).sum(-1).mean(),
        "kept": kept.mean(),
        "agreement": np.mean(own.argmax(-1) == label),
        "concepts": len(set(label)),
    }


@functools.partial(jax.jit, static_argnames="threshold")
def losses_and_gradient(logits, taught, valid, threshold):
    def total(logits):
        losses, metrics = region_losses(logits, taught, valid, threshold)
        return sum(losses.values()), {**losses, **metrics}

    return jax.grad(total, has_aux=True)(logits)


@pytest.mark.parametrize("threshold", [0.5, 0.999])
def test_losses_and_gradient(threshold):
    """With 0.999 no concept is certain, so that all regions are kept."""
    rng = np.random.default_rng(3)
    logits, taught, step = 2 * rng.normal(size=(3, IMAGES, BOXES, CONCEPTS))
    valid = rng.random((IMAGES, BOXES)) < 0.7
    step *= 1e-6
    gradient, found = losses_and_gradient(np.float32(logits), np.float32(taught), valid, threshold)
    expected = reference(logits, taught, valid, threshold)
    assert (expected["kept"] == 1) == (threshold > 0.9)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)

    def value(sign):
        moved = reference(logits + sign * step, taught, valid, threshold)
        return moved["contrastive"] + moved["distillation"]

    along = np.sum(np.float64(gradient) * step)
    np.testing.assert_allclose(along, (value(1) - value(-1)) / 2, rtol=1e-4)


def test_a_batch_without_boxes():
    logits = np.random.default_rng(0).normal(size=(IMAGES, BOXES, CONCEPTS)).astype(np.float32)
    gradient, found = losses_and_gradient(logits, logits, np.zeros((IMAGES, BOXES), bool), 0.5)
    assert not any(found.values())
    assert not np.any(gradient)


def on_devices(models, concepts, count, microbatches, threshold):
    """Loss, metrics and gradients on a mesh of some devices."""
    mesh = make_mesh(devices=jax.devices()[:count])
    objective = region_text(models[1], concepts, mesh=mesh, microbatches=(microbatches, count),
                            distillation_weight=2.0, concept_threshold=threshold)  # fmt: skip
    constants = objective.load_constants()
    abstract = objective.abstract_constants
    assert jax.tree.map(jnp.shape, constants) == jax.tree.map(lambda x: x.shape, abstract)

    @jax.jit
    def step(params, batch, constants):
        with tracing_for(MODEL, mesh):
            return jax.value_and_grad(
                lambda p: objective(MODEL.bind(p), batch, jax.random.key(1), *constants),
                has_aux=True,
            )(params)

    batch = to_devices(make_batch(), batch_sharding(mesh))
    return step(models[0], batch, constants), constants[1]["concepts"]


def test_equal_on_any_devices_and_microbatches(models, concepts):
    batch = make_batch()
    numbers = [jax.tree.map(np.float64, params) for params in models]

    def normalized(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def regions(params, mean, std):
        pixels = batch["image"].reshape(IMAGES, *SIZE, 3) / 255
        color = ((pixels - mean) / std).mean((1, 2))[:, None].repeat(BOXES + 1, axis=1)
        whole = np.tile([0.5, 0.5, 1, 1], (IMAGES, 1, 1))
        given = np.concatenate([color, np.concatenate([batch["boxes"], whole], 1)], axis=-1)
        return normalized(given @ params["visual"]["kernel"] + params["visual"]["bias"])

    def texts(params, tokens):
        return normalized(params["words"]["embedding"][tokens].sum(1))

    names = ["a", "bb", "ccc", "dddd", "ee", "f", "ggg"]
    prompts = [texts(numbers[1], tokenize([t + n for n in names])) for t in ("", "x ")]
    wanted = normalized(sum(prompts) / 2)
    own, taught = regions(numbers[0], 0.5, 0.5), regions(numbers[1], 0.2, 0.9)
    logits = [x[:, :-1] @ wanted.T / TEMPERATURE for x in (own, taught)]
    valid = batch["boxes"][..., 2] > 0
    # Half of the regions have a pseudo label.
    threshold = float(np.median(softmax(logits[1][valid], axis=-1).max(-1)))
    ((loss, metrics), gradients), embedded = on_devices(models, concepts, 1, 1, threshold)
    np.testing.assert_allclose(embedded, wanted, atol=1e-6)
    expected = reference(*logits, valid, threshold)
    assert expected["kept"] == 0.5
    pairs = own[:, -1] @ texts(numbers[0], batch["caption"]).T / TEMPERATURE
    diagonals = [np.diagonal(log_softmax(x, axis=-1)).mean() for x in (pairs, pairs.T)]
    expected["image_text"] = -np.mean(diagonals)
    for name, value in expected.items():
        found = metrics[f"{name}_loss" if name in TERMS else name]
        np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=name)
    total = sum(expected[name] for name in TERMS) + expected["distillation"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        on_devices(models, concepts, 8, 2, threshold)[0],
        ((loss, metrics), gradients),
    )


def test_without_captions(models, concepts):
    objective = region_text(models[1], concepts, image_text_weight=0.0)
    assert objective.fields == ("image", "boxes")
    batch = {k: jnp.asarray(v) for k, v in make_batch().items() if k != "caption"}
    _, metrics = jax.eval_shape(
        lambda p, c: objective.evaluate(MODEL.bind(p), batch, *c),
        MODEL.shapes(),
        objective.abstract_constants,
    )
    assert "image_text_loss" not in metrics


def test_a_plan_needs_no_concepts(models):
    objective = region_text(models[1], "")
    assert objective.abstract_constants[1]["concepts"].shape == (4764, WIDTH)
    with pytest.raises(UserError, match="concepts is not set: expected a text file"):
        objective.load_constants()


OTHER = ModelSpec(architecture=TinyRegionsConfig(embed_dim=8), inputs=INPUTS)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: expected a positive number"),
        ({"concept_threshold": 1.0}, "concept_threshold=1.0: expected a number of at least 0"),
        ({"contrastive_weight": -1.0}, "contrastive_weight=-1.0: expected a number of at least 0"),
        ({"templates": ("a",)}, "expected prompt templates with exactly one {}"),
        ({"teacher_model": ""}, "needs a teacher: set config.objective.teacher_weights"),
        ({"concepts": "no_such_file.txt"}, "expected a text file with one concept per line"),
        ({"spec": ModelSpec(architecture=small_vit(), inputs=INPUTS)}, "found ViTConfig"),
        ({"spec": OTHER}, "embeddings of 6 instead of 8 features"),
        ({"spec": dataclasses.replace(SPEC, inputs=ImageInputs())}, "show the whole image"),
    ],
)
def test_wrong_keys_and_models(keys, message, models, concepts):
    with pytest.raises(UserError, match=message):
        region_text(models[1], **{"concepts": concepts, **keys})
