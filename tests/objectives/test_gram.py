"""Gram anchoring against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import MEAN, STD, build, context, small_dino, step_on_devices

from vit_jax.data.crops import Crops, CropsConfig
from vit_jax.models.definition import ModelDef
from vit_jax.objectives.self_distillation.gram import gram_loss, resize_patches

BATCH, SIZE, LARGE, GRID = 16, (8, 12), (16, 16), (4, 6)
CROPS = Crops(CropsConfig(num_local=0, gram_size=16), GRID)
KEYS = {
    "ibot_weight": 0.0,
    "koleo_weight": 0.0,
    "gram_weight": 2.0,
    "gram_start_percent": 50.0,
    "gram_every_percent": 20.0,
    "prototypes_per_block": 6,
}
MODEL = ModelDef(small_dino())


def objective(microbatches=(1, 1), **keys):
    small = context(small_dino(), microbatches=microbatches, crops=CROPS, has_ema=True)
    return build("self_distillation", small, **{**KEYS, **keys})


def reference(student, taught):
    """Mean over images of the mean squared difference of cosines."""
    found = []
    for own, theirs in zip(np.float64(student), np.float64(taught), strict=True):
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (own, theirs))
        found.append(((a @ a.T - b @ b.T) ** 2).mean())
    return np.asarray(found)


def resized(x, new):
    """Cubic convolution with a = -0.75 between pixel centres, along the first axis."""
    old, a = len(x), -0.75
    rows = []
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        total = 0.0
        for k in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            d = abs(at - k)
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            total = total + (near if d <= 1 else far) * x[min(max(k, 0), old - 1)]
        rows.append(total)
    return np.asarray(rows)


def resized_patches(patches):
    grids = np.float64(patches).reshape(-1, 8, 8, 16)
    down = (resized(grid, GRID[0]) for grid in grids)
    found = [resized(grid.swapaxes(0, 1), GRID[1]).swapaxes(0, 1) for grid in down]
    return np.reshape(found, (len(grids), -1, 16))


def test_loss_and_gradient():
    rng = np.random.default_rng(0)
    student, taught, direction = rng.normal(size=(3, 5, 7, 4))
    found, gradient = jax.value_and_grad(lambda s, t: jnp.sum(gram_loss(s, t)), (0, 1))(
        jnp.float32(student), jnp.float32(taught)
    )
    np.testing.assert_allclose(found, reference(student, taught).sum(), rtol=1e-5)
    ends = [reference(student + step * direction, taught).sum() for step in (1e-5, -1e-5)]
    slope = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose((gradient[0] * direction).sum(), slope, rtol=1e-4)
    assert not np.asarray(gradient[1]).any()


def test_grids_are_resized_as_by_the_authors():
    patches = np.random.default_rng(0).normal(size=(3, 64, 16)).astype(np.float32)
    found = resize_patches(jnp.asarray(patches), (8, 8), GRID)
    np.testing.assert_allclose(found, resized_patches(patches), atol=1e-5)
    np.testing.assert_array_equal(resize_patches(jnp.asarray(patches), (8, 8), (8, 8)), patches)


def test_teacher_is_renewed_from_the_start_on():
    for start, total, expected in ((50.0, 10, [5, 7, 9]), (1.0, 30, [1, 7, 13, 19, 25])):
        loss = objective(gram_start_percent=start)
        renewed = [bool(loss.renews_anchor(jnp.int32(step), total)) for step in range(total)]
        assert np.flatnonzero(renewed).tolist() == expected


@pytest.fixture(scope="module")
def case():
    """Parameters of student, teacher and Gram teacher, a batch, and the expected loss."""
    rng = np.random.default_rng(1)
    shapes = MODEL.shapes()
    params = [
        jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
        for _ in range(3)
    ]
    sizes = {"global_crops": SIZE, "gram_crops": LARGE}
    pixels = {
        name: rng.integers(0, 256, (2 * BATCH, *size, 3), np.uint8) for name, size in sizes.items()
    }
    seen = [(x / 255 - np.asarray(MEAN)) / np.asarray(STD) for x in pixels.values()]

    @jax.jit
    def patches(own, theirs, images, large):
        return (
            MODEL.bind(own).encode_tokens(images)[1],
            MODEL.bind(theirs).encode_tokens(large)[1],
        )

    own, theirs = patches(params[0], params[2], *map(jnp.float32, seen))
    expected = reference(own, resized_patches(theirs)).mean()
    return params, {k: jnp.asarray(x.reshape(BATCH, -1)) for k, x in pixels.items()}, expected


def test_objective_before_and_after_the_start(case):
    """In two microbatches; before the start, the loss is that of DINO."""
    params, crops, expected = case
    loss = objective(microbatches=(2, 1))
    assert (loss.fields, loss.reads_state) == ((*crops,), ("ema", "anchor"))

    @jax.jit
    def call(params, batch):
        return loss(MODEL.bind(params[0]), batch, jax.random.key(0), *params[1:])

    for progress, gram in ((0.25, 0.0), (0.5, expected)):
        total, metrics = call(params, {**crops, "progress": jnp.float32(progress)})
        np.testing.assert_allclose(metrics["gram_loss"], gram, rtol=1e-5)
        np.testing.assert_allclose(total, metrics["dino_loss"] + 2 * gram, rtol=1e-5)


@pytest.mark.release
def test_eight_devices_and_two_microbatches_change_nothing(case):
    (student, *teachers), crops, _ = case

    def run(devices, steps):
        loss = objective(microbatches=(steps, devices))

        class Bound:  # an objective of the crops alone, which are sharded
            context = loss.context

            def __call__(self, model, crops, rng):
                return loss(model, {**crops, "progress": jnp.float32(0.6)}, rng, *teachers)

        return step_on_devices(Bound(), student, jax.tree.map(np.asarray, crops), devices)

    whole, cut = run(1, 1), run(8, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), whole, cut)
