"""The contrastive loss against float64 by hand, on any mesh, and its memory.

Needs eight devices; on CPU, XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.objectives.contrastive import FORMS, LOSSES, contrastive_loss
from vit_jax.parallel import ring

BIAS = {"softmax": 0.0, "sigmoid": -10.0}
# Mesh shape, mesh axes, batch axes.
LAYOUTS = {
    "1 device": ((1,), ("data",), ("data",)),
    "2 devices": ((2,), ("data",), ("data",)),
    "4 devices": ((4,), ("data",), ("data",)),
    "8 devices": ((8,), ("data",), ("data",)),
    "2 fsdp x 4 data": ((2, 4), ("fsdp", "data"), ("data", "fsdp")),
    "4 data x 2 tensor": ((4, 2), ("data", "tensor"), ("data",)),
    "2 data x 2 fsdp x 2 tensor": ((2, 2, 2), ("data", "fsdp", "tensor"), ("data", "fsdp")),
}


def make_mesh(shape, axes):
    devices = jax.devices()
    assert len(devices) >= 8, "set XLA_FLAGS=--xla_force_host_platform_device_count=8"
    return Mesh(np.array(devices[: math.prod(shape)]).reshape(shape), axes)


def make_pairs(batch=56, width=16, noise=1.5, seed=0):
    """Unit vectors (batch, width), float32; texts are images with noise.

    Split over 1, 2, 4 or 8 devices, 56 pairs leave padding in tiles of at most 5.
    """
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(batch, width))
    text = image + noise * rng.normal(size=(batch, width))
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    return tuple(x.astype(np.float32) for x in unit)


def loss_and_gradients(image, text, scale, bias, *, layout=None, **options):
    """((loss, metrics), gradients by image, text, scale and bias), on a layout of `LAYOUTS`.

    The gradients are those of four times the loss, divided by four, which is exact: a loss that
    ignored what it is multiplied with would show.
    """
    mesh, batch_axes = None, ()
    if layout is not None:
        shape, axes, batch_axes = LAYOUTS[layout]
        mesh = make_mesh(shape, axes)
        sharding = NamedSharding(mesh, PartitionSpec(batch_axes))
        image, text = jax.device_put((image, text), sharding)

    def weighted(image, text, scale, bias):
        loss, metrics = contrastive_loss(
            image,
            text,
            logit_scale=scale,
            logit_bias=bias,
            mesh=mesh,
            batch_axes=batch_axes,
            **options,
        )
        return 4 * loss, metrics

    step = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2, 3), has_aux=True))
    (loss, metrics), gradients = step(image, text, jnp.float32(scale), jnp.float32(bias))
    return (loss / 4, metrics), [x / 4 for x in gradients]


def assert_matches(found, expected, tolerance, *, scale_tolerance=None, gradient_tolerance=None):
    """Errors relative to the norm of the whole array; where all is zero, exactly zero."""
    (loss, metrics), gradients = found
    gradient_tolerance = gradient_tolerance or tolerance
    limits = {
        "loss": (loss, tolerance),
        "image": (gradients[0], gradient_tolerance),
        "text": (gradients[1], gradient_tolerance),
        "scale": (gradients[2], scale_tolerance or tolerance),
        "bias": (gradients[3], tolerance),
    }
    for name, (value, limit) in limits.items():
        wanted = np.asarray(getattr(expected, name))
        error = np.linalg.norm(np.asarray(value, np.float64) - wanted)
        assert error <= limit * np.linalg.norm(wanted), f"{name}: {error} of {wanted}"
    for name, value in metrics.items():
        assert float(value) == pytest.approx(getattr(expected, name), abs=1e-6), name


@pytest.mark.parametrize("loss", LOSSES)
def test_reference_gradients_are_derivatives(loss):
    image, text = (x.astype(np.float64) for x in make_pairs(5, 3))
    arguments = [image, text, np.array(7.0), np.array(-3.0)]
    gradients = reference.contrastive(*arguments, loss)[1:5]
    step = 1e-6
    for position, gradient in enumerate(gradients):
        for index in np.ndindex(np.shape(gradient)):
            losses = []
            for sign in (1, -1):
                moved = [x.copy() for x in arguments]
                moved[position][index] += sign * step
                losses.append(reference.contrastive(*moved, loss).loss)
            slope = (losses[0] - losses[1]) / (2 * step)
            assert slope == pytest.approx(np.asarray(gradient)[index], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_reference(loss, form, layout):
    image, text = make_pairs()
    found = loss_and_gradients(
        image, text, 10, BIAS[loss], loss=loss, form=form, layout=layout, tile_size=5
    )
    assert_matches(found, reference.contrastive(image, text, 10, BIAS[loss], loss), 1e-6)
    assert found[0][0].dtype == jnp.float32


@pytest.mark.parametrize(
    ("layout", "tile_size"), [(None, 1), (None, 7), ("2 devices", 7), ("2 devices", 1000)]
)
@pytest.mark.parametrize("loss", LOSSES)
def test_any_tile_size(loss, layout, tile_size):
    image, text = make_pairs(26)
    found = loss_and_gradients(
        image, text, 10, BIAS[loss], loss=loss, form="tiled", layout=layout, tile_size=tile_size
    )
    assert_matches(found, reference.contrastive(image, text, 10, BIAS[loss], loss), 1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16(loss, form):
    """The loss loses nothing, as products of bfloat16 are exact; gradients lose what rounding must.

    Slopes are rounded to bfloat16 (2**-9) before they multiply the embeddings, as are the results.
    """
    image, text = (jnp.asarray(x, jnp.bfloat16) for x in make_pairs())
    expected = reference.contrastive(image, text, 10, BIAS[loss], loss)
    found = loss_and_gradients(
        image, text, 10, BIAS[loss], loss=loss, form=form, layout="2 devices", tile_size=5
    )
    assert found[0][0].dtype == jnp.float32
    assert found[1][0].dtype == found[1][1].dtype == jnp.bfloat16
    assert_matches(found, expected, 1e-6, gradient_tolerance=5e-3, scale_tolerance=5e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_scale_100_and_trained_towers(loss, form):
    """At the customary limit of the scale, with a loss near zero, no digits may cancel away.

    A logit of 100 in float32 is itself only known to 4e-6.
    """
    image, text = make_pairs(32, 16, noise=0.7, seed=3)
    bias = {"softmax": 0.0, "sigmoid": -70.0}[loss]
    expected = reference.contrastive(image, text, 100, bias, loss)
    assert 0.01 < expected.loss < 1.5
    found = loss_and_gradients(
        image, text, 100, bias, loss=loss, form=form, layout="2 devices", tile_size=5
    )
    assert_matches(found, expected, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_ties_are_misses(form):
    image = text = np.eye(1, 8, dtype=np.float32).repeat(8, axis=0)
    (_, metrics), _ = loss_and_gradients(image, text, 10, 0.0, form=form, layout="2 devices")
    assert {name: float(x) for name, x in metrics.items()} == {
        "image_to_text_accuracy": 0.0,
        "text_to_image_accuracy": 0.0,
    }


@pytest.mark.parametrize("form", FORMS)
def test_bias_cancels_in_softmax(form):
    image, text = make_pairs(16)
    expected = reference.contrastive(image, text, 10, 0.0, "softmax")
    assert_matches(loss_and_gradients(image, text, 10, 5.0, form=form), expected, 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_one_pair(form):
    pair = make_pairs(1)
    (loss, _), gradients = loss_and_gradients(*pair, 10, 0.0, form=form)
    assert float(loss) == 0
    assert all(not np.any(x) for x in gradients)


def test_any_route_round_the_ring(monkeypatch):
    monkeypatch.setattr(ring, "ring_route", lambda mesh, axes: [0, 5, 2, 7, 1, 3, 6, 4])
    image, text = make_pairs()
    found = loss_and_gradients(image, text, 10, 0.0, form="ring", layout="8 devices")
    assert_matches(found, reference.contrastive(image, text, 10, 0.0, "softmax"), 1e-6)


def test_replicas_can_share_the_work():
    """Naming an axis that the inputs are replicated over gives the same gradients."""
    image, text = make_pairs()
    mesh = make_mesh((4, 2), ("data", "tensor"))
    inputs = jax.device_put((image, text), NamedSharding(mesh, PartitionSpec("data")))

    def loss(image, text):
        return contrastive_loss(
            image, text, logit_scale=10, form="ring", mesh=mesh, batch_axes=("data", "tensor")
        )[0]

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(*inputs)
    expected = reference.contrastive(image, text, 10, 0.0, "softmax")
    np.testing.assert_allclose(gradients[0], expected.image, atol=1e-7)
    np.testing.assert_allclose(gradients[1], expected.text, atol=1e-7)


def test_mixed_dtypes_are_multiplied_as_float32():
    image, text = make_pairs(16)
    image = jnp.asarray(image, jnp.bfloat16)
    expected = reference.contrastive(image, text, 10, 0.0, "softmax")
    (loss, _), gradients = loss_and_gradients(image, text, 10, 0.0, form="ring")
    assert float(loss) == pytest.approx(expected.loss, rel=1e-6)
    assert gradients[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(gradients[1], expected.text, atol=1e-7)


def compiled(form, batch, *, devices=8, width=12, tile_size=4, loss="softmax"):
    mesh = make_mesh((devices,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    embeddings = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=sharding)

    def value(image, text, scale, bias):
        return contrastive_loss(
            image,
            text,
            logit_scale=scale,
            logit_bias=bias,
            loss=loss,
            form=form,
            mesh=mesh,
            batch_axes=("data",),
            tile_size=tile_size,
        )[0]

    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3)))
    return step.lower(embeddings, embeddings, jnp.float32(10), jnp.float32(-10)).compile()


@pytest.mark.parametrize("loss", LOSSES)
def test_largest_array(loss):
    """What no device ever holds: N x L logits in a ring, L x L logits in tiles."""
    batch, local, width, tile = 256, 32, 12, 4
    shapes = {}
    for form in FORMS:
        text = compiled(form, batch, width=width, tile_size=tile, loss=loss).as_text()
        found = {tuple(map(int, s.split(","))) for s in re.findall(r"\w\[([\d,]+)\]", text)}
        shapes[form] = max(math.prod(shape) for shape in found)
    assert shapes["gathered"] == batch * local  # so that the count is known to see them
    assert shapes["ring"] == local * local
    assert shapes["tiled"] == local * width


def test_growth_of_memory():
    """Twice the batch on the same devices: four times the memory, or with tiles twice."""

    def growth(form):
        small, large = (
            compiled(form, batch, devices=2).memory_analysis().temp_size_in_bytes
            for batch in (512, 1024)
        )
        return large / small

    assert growth("gathered") == pytest.approx(4, rel=0.15)
    assert growth("ring") == pytest.approx(4, rel=0.15)
    assert growth("tiled") == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "sofmax"}, "unknown loss 'sofmax'; did you mean 'softmax'"),
        ({"form": "rings"}, "unknown form 'rings'; did you mean 'ring'"),
        ({"text_embeddings": np.ones((4, 3))}, r"found images \(4, 2\) and texts \(4, 3\)"),
        ({"text_embeddings": np.ones((3, 2))}, r"found images \(4, 2\) and texts \(3, 2\)"),
        ({"image_embeddings": np.ones(4)}, r"found images \(4,\)"),
        ({"text_embeddings": np.ones((4, 2), int)}, "text_embeddings: expected a floating.*int64"),
        ({"loss": "sigmoid"}, "logit_bias: expected a scalar for the sigmoid loss, found None"),
        ({"logit_scale": np.ones(1)}, r"logit_scale: expected a scalar, found shape \(1,\)"),
        ({"batch_axes": ("dota",)}, "axis in batch_axes, 'dota'; did you mean 'data'"),
        ({"batch_axes": ("data", "data")}, r"expected each axis once, found \('data', 'data'\)"),
        ({"mesh": None}, r"mesh: expected one with axes \('data',\), found None"),
        (
            {"image_embeddings": np.ones((6, 2)), "text_embeddings": np.ones((6, 2))},
            r"batch: expected a multiple of the 4 shards over \('data',\), found 6",
        ),
        ({"tile_size": 0}, "tile_size: expected at least 1, found 0"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_errors_say_expected_and_found(changes, message):
    arguments = {
        "image_embeddings": np.ones((4, 2)),
        "text_embeddings": np.ones((4, 2)),
        "logit_scale": 1.0,
        "mesh": make_mesh((4,), ("data",)),
        "batch_axes": ("data",),
    }
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**{**arguments, **changes})
