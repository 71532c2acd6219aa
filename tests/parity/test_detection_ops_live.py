"""Operations of detectors against torchvision, torch and transformers, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import relative_error
from vit_jax.models.ops.boxes import box_iou, generalized_box_iou
from vit_jax.models.ops.deform_conv import deform_conv2d
from vit_jax.models.ops.nms import nms
from vit_jax.models.ops.roi_align import roi_align
from vit_jax.models.ops.sampling import bilinear_sample, deformable_attention
from vit_jax.objectives.focal import sigmoid_focal_loss

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")


def random_boxes(rng, *shape, size=64.0):
    low, sides = rng.uniform(0, size, (2, *shape, 2))
    return np.concatenate([low, np.minimum(low + sides, size)], axis=-1).astype(np.float32)


def check_gradients(ours, theirs, arrays):
    """Compares values and gradients with respect to all arrays.

    Args:
        ours: operation on JAX arrays.
        theirs: the same on tensors.
        arrays: float32 arguments of both.
    """
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    expected = theirs(*tensors)
    weight = np.random.default_rng(9).normal(size=tuple(expected.shape)).astype(np.float32)
    (expected * torch.tensor(weight)).sum().backward()

    def value(*x):
        found = ours(*x)
        return jnp.sum(found * weight), found

    argnums = tuple(range(len(arrays)))
    gradients, found = jax.jit(jax.grad(value, argnums, has_aux=True))(*map(jnp.asarray, arrays))
    errors = [relative_error(np.asarray(found), expected.detach().numpy())]
    errors += [
        relative_error(np.asarray(g), t.grad.numpy())
        for g, t in zip(gradients, tensors, strict=True)
        if t.grad is not None
    ]
    print("relative errors of value and gradients:", *(f"{e:.1e}" for e in errors))
    assert max(errors) < 1e-4


def test_iou():
    rng = np.random.default_rng(0)
    pair = random_boxes(rng, 30), random_boxes(rng, 20)
    check_gradients(box_iou, torchvision.ops.box_iou, pair)
    check_gradients(generalized_box_iou, torchvision.ops.generalized_box_iou, pair)


@pytest.mark.parametrize("count", [10, 300, 2000])
def test_nms(count):
    rng = np.random.default_rng(count)
    boxes, scores = random_boxes(rng, count), rng.random(count).astype(np.float32)
    labels = rng.integers(0, 5, count)
    tensors = torch.tensor(boxes), torch.tensor(scores)
    call = jax.jit(nms, static_argnums=2)
    for threshold in (0.3, 0.5, 0.7):
        keep = np.asarray(call(boxes, scores, threshold))
        expected = torchvision.ops.nms(*tensors, threshold)
        np.testing.assert_array_equal(np.flatnonzero(keep), np.sort(expected))
        keep = np.asarray(call(boxes, scores, threshold, labels=labels))
        expected = torchvision.ops.batched_nms(*tensors, torch.tensor(labels), threshold)
        np.testing.assert_array_equal(np.flatnonzero(keep), np.sort(expected))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [None, 1, 3])
@pytest.mark.parametrize("output", [(7, 7), (14, 9)])
def test_roi_align(aligned, samples, output):
    """A map of 20 x 25 cells at stride 4; boxes in the image, some of them without area."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 20, 25, 8)).astype(np.float32)
    boxes = random_boxes(rng, 2, 30, size=80.0)
    boxes[:, 0, 2:], boxes[:, 1, 3] = boxes[:, 0, :2], boxes[:, 1, 1]
    if samples:
        boxes[:, 2:6] += rng.uniform(-60, 60, (2, 4, 4)).astype(np.float32)
        boxes[:, 2:6, 2:] = np.maximum(boxes[:, 2:6, :2], boxes[:, 2:6, 2:])

    def theirs(x):
        rois = [torch.tensor(image) for image in boxes]
        found = torchvision.ops.roi_align(
            x.permute(0, 3, 1, 2), rois, output, 0.25, samples or -1, aligned
        )
        return found.permute(0, 2, 3, 1).reshape(2, 30, *output, 8)

    def ours(x):
        return roi_align(
            x,
            jnp.asarray(boxes),
            output,
            spatial_scale=0.25,
            sampling_ratio=samples,
            aligned=aligned,
        )

    check_gradients(ours, theirs, (features,))


def test_bilinear_sample():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 13, 17, 8)).astype(np.float32)
    points = rng.uniform(-0.2, 1.2, (2, 200, 2)).astype(np.float32)

    def theirs(x, points):
        grid = (2 * points - 1)[:, :, None]
        found = torch.nn.functional.grid_sample(
            x.permute(0, 3, 1, 2), grid, padding_mode="zeros", align_corners=False
        )
        return found[..., 0].transpose(1, 2)

    check_gradients(bilinear_sample, theirs, (features, points))


@pytest.mark.parametrize("stride", [1, 2])
def test_deform_conv(stride):
    """Modulated, 3 x 3, as in a dynamic head."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 13, 17, 8)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 8, 6)).astype(np.float32)
    output = 12 // stride + 1, 16 // stride + 1
    offsets = rng.normal(size=(2, *output, 9, 2)).astype(np.float32) * 2
    mask = rng.random((2, *output, 9)).astype(np.float32)

    def theirs(features, kernel, offsets, mask):
        found = torchvision.ops.deform_conv2d(
            features.permute(0, 3, 1, 2),
            offsets.flatten(3).permute(0, 3, 1, 2),
            kernel.permute(3, 2, 0, 1),
            stride=stride,
            padding=1,
            mask=mask.permute(0, 3, 1, 2),
        )
        return found.permute(0, 2, 3, 1)

    ours = functools.partial(deform_conv2d, stride=stride, padding=1)
    check_gradients(ours, theirs, (features, kernel, offsets, mask))


def test_deformable_attention():
    """Of Grounding DINO, with its four levels, eight heads and four samples."""
    from transformers.models.grounding_dino import modeling_grounding_dino as reference

    rng = np.random.default_rng(0)
    sizes = ((25, 34), (13, 17), (7, 9), (4, 5))
    length = sum(h * w for h, w in sizes)
    values = rng.normal(size=(2, length, 8, 32)).astype(np.float32)
    points = rng.uniform(-0.1, 1.1, (2, 50, 8, 4, 4, 2)).astype(np.float32)
    weights = rng.random((2, 50, 8, 4, 4)).astype(np.float32)
    module = reference.MultiScaleDeformableAttention()

    def theirs(values, points, weights):
        found = module(values, torch.tensor(sizes), list(sizes), None, points, weights, 64)
        return found.reshape(2, 50, 8, 32)

    def ours(values, points, weights):
        return deformable_attention(values, sizes, points, weights)

    check_gradients(ours, theirs, (values, points, weights))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.3, 2.0), (0.25, 1.5), (0.9, 0.0)])
def test_focal_loss(alpha, gamma):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(9, 31)).astype(np.float32) * 6, rng.random((9, 31)) < 0.2

    def theirs(x):
        return torchvision.ops.sigmoid_focal_loss(x, torch.tensor(targets).float(), alpha, gamma)

    def ours(x):
        return sigmoid_focal_loss(x, jnp.asarray(targets), alpha=alpha, gamma=gamma)

    check_gradients(ours, theirs, (logits,))
