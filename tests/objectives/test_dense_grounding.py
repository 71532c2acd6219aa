"""GLIP's grounding loss and ATSS against NumPy in float64, with a small stand-in for a detector."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import SIZE, build, context, random_images, small_vit, step_on_devices
from flax import nnx
from scipy.special import expit

from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.glip.anchors import make_anchors
from vit_jax.models.glip.model import Predictions

IMAGES, BOXES, LENGTH = 4, 5, 6
LEVELS, STRIDES = ((4, 6), (2, 3), (1, 2)), (8, 16, 32)
POSITIONS = sum(rows * columns for rows, columns in LEVELS)
ANCHORS = make_anchors(LEVELS, STRIDES)
SCALE = 8  # the levels are those of images eight times as large


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Linear maps of the pixels."""

    image_size: tuple[int, int] = SIZE

    def make(self, **execution: Any) -> "Tiny":
        return Tiny(execution["rngs"])


class Tiny(nnx.Module):
    predicts_centerness = True

    def __init__(self, rngs):
        pixels = SIZE[0] * SIZE[1] * 3
        self.out = nnx.Linear(pixels, POSITIONS * (LENGTH + 5), rngs=rngs)

    def layers_above(self):
        return {}

    def __call__(self, images, tokens):
        raise NotImplementedError

    def predict(self, images, tokens, *, rng=None):
        flat = self.out(images.reshape(len(images), -1)).reshape(len(images), POSITIONS, -1)
        logits, deltas, centerness = jnp.split(flat, (LENGTH, LENGTH + 4), axis=-1)
        none = jnp.zeros((1, len(images), 1, 1))
        levels = [jnp.zeros((len(images), *size, 1)) for size in LEVELS]
        rest = (logits, deltas, centerness[..., 0], jnp.asarray(ANCHORS))
        return Predictions(none[0], levels, none, none, *rest)


def objective(microbatches=(1, 1), **keys):
    ctx = context(TinyConfig(), microbatches=microbatches)
    spec = dataclasses.replace(ctx.spec, inputs=ImageInputs(resize="squash"))
    return build("dense_grounding", dataclasses.replace(ctx, spec=spec), **keys)


@pytest.fixture(scope="module")
def batch():
    """The second image has no boxes, the third one many of one place."""
    rng = np.random.default_rng(0)
    side = rng.uniform(0.2, 0.8, (IMAGES, BOXES, 2))
    center = side / 2 + rng.uniform(size=side.shape) * (1 - side)
    center[2], side[2] = center[2, 0], side[2, :1] * np.linspace(0.7, 1, BOXES)[:, None]
    positive_map = rng.random((IMAGES, BOXES, LENGTH)) < 0.4
    positive_map[:, :3, 0], positive_map[:, 4], positive_map[1] = True, False, False
    tokens = rng.integers(1, 9, (IMAGES, LENGTH)) * (np.arange(LENGTH) < LENGTH - 1)
    return {
        "image": random_images(IMAGES)[0],
        "sizes": jnp.asarray([SIZE] * IMAGES) * SCALE
        - jnp.asarray([[0, 0], [0, 9], [7, 0], [1, 1]]),
        "tokens": jnp.asarray(tokens, jnp.int32),
        "boxes": jnp.asarray(np.concatenate([center, side], -1), jnp.float32),
        "positive_map": jnp.asarray(positive_map & (tokens > 0)[:, None]),
    }


def overlap(a, b, extra):
    """IoU and generalised IoU of two boxes whose sides are longer by `extra`."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    area = lambda x: np.prod(x[2:] - x[:2] + extra)  # noqa: E731
    shared = np.prod(np.maximum(high - low + extra, 0))
    union = area(a) + area(b) - shared
    hull = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]) + extra)
    return shared / union, shared / union - (hull - union) / hull


def assign(boxes, valid):
    """Index of the box of each position by loops, -1 for none."""
    best, found = np.full(POSITIONS, -np.inf), np.full(POSITIONS, -1)
    centers = (ANCHORS[:, :2] + ANCHORS[:, 2:]) / 2
    for i, box in enumerate(boxes):
        distance = np.linalg.norm(centers - (box[:2] + box[2:]) / 2, axis=1)
        candidates, start = [], 0
        for rows, columns in LEVELS:
            order = np.argsort(distance[start : start + rows * columns], kind="stable")[:9]
            candidates += list(order + start)
            start += rows * columns
        ious = np.array([overlap(box, ANCHORS[j].astype(float), 1)[0] for j in candidates])
        for j, iou in zip(candidates, ious, strict=True):
            inside = min(*(centers[j] - box[:2]), *(box[2:] - centers[j])) > 0.01
            if valid[i] and iou >= ious.mean() + ious.std(ddof=1) and inside and iou > best[j]:
                best[j], found[j] = iou, i
    return found


def reference(found, batch, giou_weight=2.0):
    """Loss and number of assigned positions."""
    logits, deltas, center = (np.float64(x) for x in (found.logits, found.deltas, found.centerness))
    alignment, giou, entropy, count, total = 0.0, 0.0, 0.0, 0, 0.0
    for b in range(IMAGES):
        height, width = np.asarray(batch["sizes"][b])
        x, y, w, h = np.float64(batch["boxes"][b]).T
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1) * ([width, height] * 2)
        boxes[:, 2:] -= 1
        words = np.asarray(batch["positive_map"][b])
        assigned = assign(boxes, words.any(axis=1))
        exists = np.asarray(batch["tokens"][b]) > 0
        targets = np.where(assigned[:, None] >= 0, words[assigned], False)
        p = expit(np.where(targets, logits[b], -logits[b]))
        alpha = np.where(targets, 0.25, 0.75)
        alignment += np.sum((-alpha * (1 - p) ** 2 * np.log(p))[:, exists])
        for j in np.flatnonzero(assigned >= 0):
            box, anchor = boxes[assigned[j]], ANCHORS[j].astype(float)
            middle, side = (anchor[:2] + anchor[2:]) / 2, anchor[2:] - anchor[:2] + 1
            before, after = middle - box[:2], box[2:] - middle
            share = np.sqrt(np.prod(np.minimum(before, after) / np.maximum(before, after)))
            new_middle = middle + deltas[b, j, :2] / 10 * side
            new_side = np.exp(deltas[b, j, 2:] / 5) * side
            low, high = new_middle - (new_side - 1) / 2, new_middle + (new_side - 1) / 2
            giou += share * (1 - overlap(np.concatenate([low, high]), box, 0)[1])
            p = expit(center[b, j])
            entropy -= share * np.log(p) + (1 - share) * np.log(1 - p)
            count, total = count + 1, total + share
    return alignment / count + giou_weight * giou / total + entropy / count, count


def test_same_loss_as_numpy_on_any_devices(batch):
    """Four times the batch, in microbatches on eight devices, has the same loss."""
    loss = objective()
    model = loss.context.model
    params = jax.jit(model.init)(jax.random.key(0))
    params["out"]["kernel"] *= 3

    @jax.jit
    def run(params, batch):
        def value(params):
            return loss(model.bind(params), batch, None)

        pixels = loss.images(batch)
        found = model.bind(params).predict(pixels, batch["tokens"])
        return jax.value_and_grad(value, has_aux=True)(params), found

    ((value, metrics), gradients), found = run(params, batch)
    expected, count = reference(found, batch)
    assert count > 6
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    boxes = int(np.asarray(batch["positive_map"]).any(axis=2).sum())
    np.testing.assert_allclose(metrics["positions_per_box"], count / boxes, rtol=1e-6)
    np.testing.assert_allclose(metrics["boxes_per_image"], boxes / IMAGES)
    assert 0 < metrics["iou"] < 1
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(gradients))

    larger = jax.tree.map(lambda x: np.tile(x, (4, *(1,) * (x.ndim - 1))), batch)
    found = step_on_devices(objective((2, 8)), params, larger, 8)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        ((value, metrics), gradients),
    )


def test_images_without_boxes(batch):
    """Negatives alone are learnt; the loss and its gradient are finite."""
    loss = objective()
    model = loss.context.model
    params = jax.jit(model.init)(jax.random.key(0))
    empty = {**batch, "positive_map": jnp.zeros_like(batch["positive_map"])}
    value = lambda params: loss(model.bind(params), empty, None)  # noqa: E731
    (found, metrics), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
    np.testing.assert_allclose(found, metrics["class_loss"])
    assert metrics["giou_loss"] == metrics["centerness_loss"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"focal_alpha": 2.0}, "focal_alpha=2.0: expected a number of at least 0 and at most 1"),
        ({"candidates": 0}, "candidates=0: expected a number of at least 1"),
        ({"giou_weight": -1.0}, "giou_weight=-1.0: expected a number of at least 0"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(UserError, match=message):
        objective(**keys)


def test_models_without_centerness():
    with pytest.raises(UserError, match="at each position, as glip_tiny; found ViTConfig"):
        build("dense_grounding", context(small_vit()))
