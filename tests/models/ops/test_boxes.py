"""Box conversions, areas, IoU and GIoU against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.ops import boxes as ops

SCALE = 100  # px


def random_boxes(shape, seed=0):
    """Boxes xyxy, float64."""
    low, sides = np.random.default_rng(seed).uniform(0, SCALE, (2, *shape, 2))
    return np.concatenate([low, low + sides], axis=-1)


def iou_and_giou(a, b):
    """Of two boxes xyxy, by intervals."""
    inner = outer = 1.0
    for axis in range(2):
        inner *= max(0.0, min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis]))
        outer *= max(a[axis + 2], b[axis + 2]) - min(a[axis], b[axis])
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / union, inner / union - (outer - union) / outer


def test_conversions():
    boxes = random_boxes((3, 5))
    x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)
    expected = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=-1)
    found = ops.xyxy_to_cxcywh(jnp.float32(boxes))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(ops.cxcywh_to_xyxy(found), boxes, rtol=1e-5)
    np.testing.assert_allclose(ops.box_area(jnp.float32(boxes)), (x1 - x0) * (y1 - y0), rtol=1e-5)


def test_iou_of_pairs():
    a, b = random_boxes((2, 7)), random_boxes((2, 4), seed=1)
    b[0, 0] = a[0, 0]
    images = zip(a, b, strict=True)
    expected = np.array([[[iou_and_giou(x, y) for y in ys] for x in xs] for xs, ys in images])
    functions = ops.box_iou, ops.generalized_box_iou
    iou, giou = jax.jit(lambda a, b: [f(a, b) for f in functions])(np.float32(a), np.float32(b))
    np.testing.assert_allclose(iou, expected[..., 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(giou, expected[..., 1], rtol=1e-5, atol=1e-6)
    assert (np.asarray(iou) == 0).any()  # some pairs do not overlap
    assert iou[0, 0, 0] == giou[0, 0, 0] == 1


POINT, LINE, SQUARE = [2.0, 2, 2, 2], [0.0, 1, 4, 1], [0.0, 0, 2, 2]
WITHOUT_AREA = [  # box, other box, IoU, GIoU
    (POINT, POINT, 0, 0),  # the surrounding box has no area
    (LINE, LINE, 0, 0),
    (POINT, [3.0, 3, 3, 3], 0, -1),
    (LINE, SQUARE, 0, 4 / 8 - 1),
    ([0.0] * 4, [0.0] * 4, 0, 0),  # padding
    (SQUARE, [2.0, 0, 4, 2], 0, 0),  # touching
]


def test_boxes_without_area():
    a, b, *expected = (np.float32(x) for x in zip(*WITHOUT_AREA, strict=True))

    @jax.jit
    def pairs(a, b):
        def total(a, b):
            both = ops.box_iou(a, b), ops.generalized_box_iou(a, b)
            return sum(map(jnp.sum, both)), both

        return jax.value_and_grad(total, (0, 1), has_aux=True)(a, b)

    (_, found), gradients = pairs(a[:, None], b[:, None])
    np.testing.assert_array_equal(np.squeeze(found), expected)
    assert np.isfinite(gradients).all()


def test_no_boxes():
    shape = jax.eval_shape(ops.generalized_box_iou, jnp.zeros((2, 0, 4)), jnp.zeros((2, 3, 4)))
    assert shape.shape == (2, 0, 3)
