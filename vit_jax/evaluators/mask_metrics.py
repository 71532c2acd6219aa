"""Metrics of masks."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

Mask = Bool[np.ndarray, "height width"]


def overlap(found: Mask, target: Mask, valid: Mask | None = None) -> tuple[int, int]:
    """Counts the pixels of the intersection and of the union.

    Args:
        found: predicted mask.
        target: right mask.
        valid: pixels that count; None for all.
    """
    both, either = found & target, found | target
    if valid is not None:
        both, either = both & valid, either & valid
    return int(np.count_nonzero(both)), int(np.count_nonzero(either))


def mean_iou(pairs: Sequence[tuple[int, int]]) -> float:
    """Mean intersection over union, where each mask counts the same.

    Args:
        pairs: results of `overlap`; two empty masks have an IoU of 1.
    """
    return float(np.mean([both / either if either else 1.0 for both, either in pairs]))


def overall_iou(pairs: Sequence[tuple[int, int]]) -> float:
    """Sum of the intersections divided by that of the unions (oIoU), where each pixel counts.

    Args:
        pairs: results of `overlap`.
    """
    both, either = np.sum(pairs, axis=0)
    return float(both / either) if either else 1.0


def boundary_f(found: Mask, target: Mask, tolerance: float = 0.008) -> float:
    """F-score of the boundary (Martin et al. 2004; Perazzi et al. 2016, DAVIS).

    The harmonic mean of the fractions of each boundary that lie within a distance of the other. A
    pixel is of the boundary if it is of the mask and one of its four neighbours is not. The edge of
    the image is no boundary.

    Args:
        found: predicted mask.
        target: right mask.
        tolerance: largest distance, as a fraction of the image's diagonal; rounded up to pixels.

    Returns:
        A number in [0, 1]; 1 if neither mask has a boundary, 0 if only one has.
    """
    radius = math.ceil(tolerance * math.hypot(*target.shape))
    edges = [_boundary(mask) for mask in (found, target)]
    empty = [not edge.any() for edge in edges]
    if any(empty):
        return float(all(empty))
    near = [_distance_to(edge) <= radius for edge in edges]
    precision, recall = float(np.mean(near[1][edges[0]])), float(np.mean(near[0][edges[1]]))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: Mask) -> Mask:
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    pixels = mask.astype(np.uint8)
    return (pixels - cv2.erode(pixels, cross, borderType=cv2.BORDER_REPLICATE)) > 0


def _distance_to(mask: Mask) -> Float[np.ndarray, "height width"]:
    """Euclidean distance of each pixel to the next one of a mask."""
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def farthest_inside(mask: Mask) -> tuple[tuple[int, int], float]:
    """Finds the pixel of a mask that is farthest from its outside, which includes the edges.

    Args:
        mask: a mask.

    Returns:
        Column and row of the first such pixel, and its distance; (0, 0) and 0 for an empty mask.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(distance), distance.shape)
    return (int(column), int(row)), float(distance[row, column])


def confusion(
    predicted: Int[np.ndarray, " pixels"], labels: Int[np.ndarray, " pixels"], num_classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts pixels by their label (rows) and prediction (columns).

    Args:
        predicted: predicted classes.
        labels: right classes; pixels of negative ones do not count.
        num_classes: number of classes.
    """
    counted = labels >= 0
    joint = labels[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(joint, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(counts: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, " classes"]:
    """Intersection over union of each class over all pixels of a data set.

    Args:
        counts: sum of results of `confusion`.

    Returns:
        IoU; NaN for classes that are neither labelled nor predicted.
    """
    right = np.diag(counts).astype(np.float64)
    either = counts.sum(axis=0) + counts.sum(axis=1) - right
    return np.divide(right, either, out=np.full(len(right), np.nan), where=either > 0)
