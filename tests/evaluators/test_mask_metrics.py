"""Metrics of masks against NumPy, SciPy and scikit-learn."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import confusion_matrix, jaccard_score

from vit_jax.data.masks import decode_mask, encode_mask
from vit_jax.evaluators import average_precision as ap
from vit_jax.evaluators import mask_metrics as mm


def blob(rng, shape=(40, 50)):
    mask = np.zeros(shape, np.uint8)
    for _ in range(3):
        center = tuple(int(x) for x in rng.integers(0, shape[::-1]))
        axes = tuple(int(x) for x in rng.integers(3, 15, 2))
        cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return mask > 0


def test_mean_and_overall_iou():
    rng = np.random.default_rng(0)
    masks = [(blob(rng), blob(rng)) for _ in range(6)]
    pairs = [mm.overlap(*each) for each in masks]
    flat = [(target.ravel(), found.ravel()) for found, target in masks]
    assert mm.mean_iou(pairs) == pytest.approx(np.mean([jaccard_score(*each) for each in flat]))
    joined = [np.concatenate(each) for each in zip(*flat, strict=True)]
    assert mm.overall_iou(pairs) == pytest.approx(jaccard_score(*joined))
    empty = np.zeros((3, 3), bool)
    assert mm.mean_iou([mm.overlap(empty, empty)]) == mm.overall_iou([(0, 0)]) == 1
    assert mm.overlap(~empty, ~empty, np.eye(3, dtype=bool)) == (3, 3)


def boundary_by_hand(found, target, radius):
    edges = []
    for mask in (found, target):
        padded = np.pad(mask, 1, mode="edge")
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        edges.append(np.argwhere(mask & ~inner))
    distance = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=-1)
    precision = np.mean(distance.min(axis=1) <= radius)
    recall = np.mean(distance.min(axis=0) <= radius)
    return 2 * precision * recall / (precision + recall)


def test_boundary_f_score():
    rng = np.random.default_rng(0)
    for tolerance, radius in ((0.008, 1), (0.05, 4)):
        for _ in range(5):
            found, target = blob(rng), blob(rng)
            expected = boundary_by_hand(found, target, radius)
            assert mm.boundary_f(found, target, tolerance) == pytest.approx(expected)
    empty = np.zeros((40, 50), bool)
    assert mm.boundary_f(found, empty) == mm.boundary_f(empty, target) == 0
    assert mm.boundary_f(empty, empty) == mm.boundary_f(~empty, empty) == 1  # no boundary at all


def test_the_point_farthest_inside():
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = blob(rng)
        distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        (x, y), found = mm.farthest_inside(mask)
        assert found == pytest.approx(distance.max(), abs=1e-4)
        assert distance[y, x] == pytest.approx(distance.max(), abs=1e-4)
    assert mm.farthest_inside(np.zeros((3, 4), bool)) == ((0, 0), 0.0)


def test_iou_of_classes():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(-1, 3, 500), rng.integers(0, 4, 500)
    counts = mm.confusion(predicted, labels, 5)
    kept = labels >= 0
    expected = confusion_matrix(labels[kept], predicted[kept], labels=range(5))
    np.testing.assert_array_equal(counts, expected)
    scores = jaccard_score(labels[kept], predicted[kept], average=None, labels=range(4))
    np.testing.assert_allclose(mm.class_iou(counts)[:4], scores)
    assert np.isnan(mm.class_iou(counts)[4])


# --- average precision of masks -------------------------------------------------------------------


def test_run_lengths_are_decoded_again():
    mask = blob(np.random.default_rng(0))
    np.testing.assert_array_equal(decode_mask(encode_mask(mask), *mask.shape), mask)


def annotated_and_detected(pairs):
    boxes = np.tile(np.array([[0.0, 0, 50, 40]]), (len(pairs), 1))  # the same for all
    labels, scores = np.zeros(len(pairs), np.int64), np.linspace(1, 0.5, len(pairs))
    areas = np.array([target.sum() for _, target in pairs], np.float64)
    masks = [[encode_mask(mask) for mask in each] for each in zip(*pairs, strict=True)]
    crowd = np.zeros(len(pairs), bool)
    one = [slice(i, i + 1) for i in range(len(pairs))]
    return (
        [ap.Annotated(boxes[i], labels[i], crowd[i], areas[i], masks=masks[1][i]) for i in one],
        [ap.Detected(boxes[i], labels[i], scores[i], masks=masks[0][i]) for i in one],
    )


def test_average_precision_of_masks_by_hand():
    """One object and one detection per image: precision falls where the IoU is too small."""
    rng = np.random.default_rng(0)
    targets = [blob(rng) for _ in range(12)]
    pairs = []
    for i, target in enumerate(targets):
        found = target.copy()
        found[: 3 * i] = False
        pairs.append((found | (i == 0) & blob(rng), target))
    iou = np.array([a / b for a, b in (mm.overlap(*each) for each in pairs)])
    curves = ap.compute_curves(*annotated_and_detected(pairs), 1)
    for threshold in (0.5, 0.75):
        hits = iou >= threshold
        assert 0 < hits.sum() < len(hits)
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        recall = np.cumsum(hits) / len(hits)
        at = [max((p for p, r in zip(precision, recall, strict=True) if r >= wanted), default=0)
              for wanted in np.linspace(0, 1, 101)]  # fmt: skip
        assert ap.average_precision(curves, iou=threshold) == pytest.approx(np.mean(at))
