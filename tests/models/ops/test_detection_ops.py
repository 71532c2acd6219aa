"""NMS, RoIAlign, sampling, deformable operations and matching against float64 NumPy."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from test_boxes import iou_and_giou, random_boxes

from vit_jax.errors import UserError
from vit_jax.models.ops.deform_conv import deform_conv2d
from vit_jax.models.ops.matching import match_boxes
from vit_jax.models.ops.nms import nms
from vit_jax.models.ops.roi_align import roi_align
from vit_jax.models.ops.sampling import bilinear_sample, deformable_attention


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def to_jax(*arrays):
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def check_with_gradient(function, reference, arrays, rtol=1e-4):
    """Compares values, and the derivative along a random direction with central differences.

    Args:
        function: the operation, of float32 arrays.
        reference: the same in float64.
        arrays: arguments of both, float64.
        rtol: relative tolerance of the derivative.
    """
    expected = reference(*arrays)
    weight = random(*expected.shape, seed=7)

    @jax.jit
    def found(*x):
        return function(*x), jax.grad(
            lambda *y: jnp.sum(function(*y) * weight), tuple(range(len(x)))
        )(*x)

    values, gradients = found(*to_jax(*arrays))
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    directions = [random(*x.shape, seed=i) * 1e-6 for i, x in enumerate(arrays)]
    ahead, behind = (
        np.sum(reference(*(x + s * d for x, d in zip(arrays, directions, strict=True))) * weight)
        for s in (1, -1)
    )
    along = sum(np.sum(g * d) for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(along, (ahead - behind) / 2, rtol=rtol)


def interpolate(image, y, x):
    """Bilinear interpolation of (H, W, C) at one point in cells, zeros outside."""
    total = np.zeros(image.shape[-1])
    for row, column in itertools.product(*((math.floor(v), math.floor(v) + 1) for v in (y, x))):
        if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
            total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def sample_at(image, points):
    """At points (N, 2), fractions of the image."""
    height, width = image.shape[:2]
    return np.stack([interpolate(image, y * height - 0.5, x * width - 0.5) for x, y in points])


def test_bilinear_sample():
    image, points = random(2, 4, 5, 3), np.random.default_rng(1).uniform(-0.2, 1.2, (2, 12, 2))

    def reference(image, points):
        return np.stack([sample_at(*pair) for pair in zip(image, points, strict=True)])

    check_with_gradient(bilinear_sample, reference, (image, points))


def test_deformable_attention():
    sizes = ((4, 6), (2, 3))
    values = random(2, 4 * 6 + 2 * 3, 2, 3)
    points = np.random.default_rng(1).uniform(-0.1, 1.1, (2, 3, 2, 2, 2, 2))
    weights = random(2, 3, 2, 2, 2, seed=2)

    def reference(values, points, weights):
        found = np.zeros((2, 3, 2, 3))
        for b, q, head, level in np.ndindex(2, 3, 2, 2):
            part = values[b, : 4 * 6, head] if level == 0 else values[b, 4 * 6 :, head]
            sampled = sample_at(part.reshape(*sizes[level], 3), points[b, q, head, level])
            found[b, q, head] += weights[b, q, head, level] @ sampled
        return found

    def function(values, points, weights):
        return deformable_attention(values, sizes, points, weights)

    check_with_gradient(function, reference, (values, points, weights))


@pytest.mark.parametrize("stride", [1, 2])
def test_deform_conv(stride):
    """A kernel of 3 x 2 on an odd map, with offsets that leave it."""
    features, kernel = random(2, 5, 4, 3), random(3, 2, 3, 2, seed=1)
    rows = columns = 4 // stride + 1
    offsets = random(2, rows, columns, 6, 2, seed=2) * 1.5
    mask = np.random.default_rng(3).random((2, rows, columns, 6))

    def reference(features, kernel, offsets, mask):
        found = np.zeros((2, rows, columns, 2))
        for b, row, column, i, j in np.ndindex(2, rows, columns, 3, 2):
            y, x = offsets[b, row, column, 2 * i + j]
            at = row * stride - 1 + i + y, column * stride - 1 + j + x
            weight = mask[b, row, column, 2 * i + j]
            found[b, row, column] += weight * interpolate(features[b], *at) @ kernel[i, j]
        return found

    function = functools.partial(deform_conv2d, stride=stride, padding=1)
    check_with_gradient(function, reference, (features, kernel, offsets, mask))


def test_deform_conv_of_another_size():
    arrays = (jnp.zeros(shape) for shape in ((1, 5, 4, 3), (3, 3, 3, 2), (1, 5, 4, 9, 2)))
    with pytest.raises(UserError, match=r"offsets: expected the shape \(1, 3, 2, 9, 2\); found"):
        deform_conv2d(*arrays, padding=1, stride=2)


def align(image, box, bins, samples, aligned):
    """RoIAlign of one box in cells."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box - (0.5 if aligned else 0)
    sides = [y1 - y0, x1 - x0] if aligned else [max(y1 - y0, 1), max(x1 - x0, 1)]
    counts = [samples or math.ceil(side / n) for side, n in zip(sides, bins, strict=True)]
    found = np.zeros((*bins, image.shape[-1]))
    for row, column in np.ndindex(*bins):
        for i, j in np.ndindex(*counts):
            y = y0 + (row + (i + 0.5) / counts[0]) * sides[0] / bins[0]
            x = x0 + (column + (j + 0.5) / counts[1]) * sides[1] / bins[1]
            if -1 <= y <= height and -1 <= x <= width:
                y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                found[row, column] += interpolate(image, y, x) / math.prod(counts)
    return found


ROIS = np.asarray(  # in an image of 12 x 16 px: inside, small, across the border, without area
    [[1.3, 2.2, 9.1, 11.4], [3.1, 4.3, 4.2, 4.9], [-2.9, 5.1, 18.3, 13.7], [4.3, 2.1, 4.3, 7.3]]
)


@pytest.mark.parametrize(("samples", "aligned"), [(None, False), (2, True)])
def test_roi_align(samples, aligned):
    features, boxes = random(2, 6, 8, 3), np.stack([ROIS, ROIS[::-1] + 0.07])
    if samples is None:
        boxes[:, :, ::2] = boxes[:, :, ::2].clip(0, 16)  # the number of samples is bounded

    def reference(features, boxes):
        return np.stack(
            [
                np.stack([align(image, box / 2, (3, 2), samples, aligned) for box in image_boxes])
                for image, image_boxes in zip(features, boxes, strict=True)
            ]
        )

    function = functools.partial(
        roi_align, output_size=(3, 2), spatial_scale=0.5, sampling_ratio=samples, aligned=aligned
    )
    # The number of samples of a box without area jumps, so that only the features are varied.
    check_with_gradient(
        lambda x: function(x, jnp.float32(boxes)), lambda x: reference(x, boxes), (features,)
    )
    if samples:
        check_with_gradient(function, reference, (features, boxes))


def suppress(boxes, scores, threshold, labels):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if all(
            labels[i] != labels[j] or iou_and_giou(boxes[i], boxes[j])[0] <= threshold for j in kept
        ):
            kept.append(i)
    return np.isin(np.arange(len(boxes)), kept)


@pytest.mark.parametrize("per_class", [False, True])
def test_nms(per_class):
    rng = np.random.default_rng(3)
    boxes = random_boxes((2, 40))
    scores, labels = rng.integers(0, 20, (2, 40)) / 20, rng.integers(0, 3, (2, 40))
    scores[1, 30:], boxes[1, 30:] = -np.inf, boxes[1, :10]  # padding
    expected = np.stack(
        [suppress(b, s, 0.3, x * per_class) for b, s, x in zip(boxes, scores, labels, strict=True)]
    )
    call = jax.jit(functools.partial(nms, iou_threshold=0.3))
    found = call(*to_jax(boxes, scores), labels=jnp.asarray(labels) if per_class else None)
    np.testing.assert_array_equal(found, expected)
    assert 10 < found.sum() < 60


match = jax.jit(match_boxes)


def test_matching_equals_scipy():
    """Also with padding anywhere, with no box at all, and with more boxes than queries."""
    rng = np.random.default_rng(0)
    for boxes, queries in ((7, 12), (12, 7)):
        cost = rng.normal(size=(6, boxes, queries)) * [[[1]], [[100]], [[1]], [[1]], [[1]], [[1]]]
        cost[2] -= 50
        valid = rng.random((6, boxes)) < 0.7
        valid[3], valid[4] = False, True
        found = np.asarray(match(jnp.float32(cost), jnp.asarray(valid)))
        for one, mask, result in zip(cost, valid, found, strict=True):
            expected = np.full(boxes, -1)
            row, column = linear_sum_assignment(one[mask])
            expected[np.flatnonzero(mask)[row]] = column
            np.testing.assert_array_equal(result, expected)


def test_matching_of_a_diverged_model():
    """The algorithm ends, and each box has a query at most once."""
    cost = np.full((6, 7, 12), np.nan)
    cost[1, :, 3:] = np.arange(9) + np.arange(7)[:, None]
    cost[1, 2] = np.inf
    found = np.asarray(match(jnp.float32(cost), jnp.ones((6, 7), bool)))
    for one in found:
        matched = one[one >= 0]
        assert len(set(matched)) == len(matched)
    assert (np.delete(found[1], 2) >= 3).all()
